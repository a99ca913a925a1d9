//! Names of any bytes and paths of any length arrive as they are (issue 2, item 5: `path_b64`).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use crate::support::copy::copy_exactly;
use crate::support::launch::Job;
use crate::support::oracle;
use crate::support::tree::{self, noise_file, raw, temp, write};

#[test]
fn names_with_every_byte_arrive() {
    let dir = temp();
    let src = dir.path().join("src");
    for byte in (1..=255_u8).filter(|b| *b != b'/') {
        write(&raw(&src, &[b'x', byte]), &[byte; 10]);
        write(&raw(&src, &[b'd', byte]).join("f"), &[byte; 20]);
    }
    tree::age(&src);
    let copied = copy_exactly(&Job::ranks(2), &src, &dir.path().join("dst"));
    // Entries that are not UTF-8 say so by their key, all others are plain.
    let entry = &copied.manifest().entries[b"x\xff".as_slice()];
    assert!(entry.get("path").is_none() && entry["path_b64"].is_string(), "{entry}");
    let entry = &copied.manifest().entries[b"x\n".as_slice()];
    assert_eq!(entry["path"], "x\n");
}

#[test]
fn names_that_look_like_options_quotes_or_paths_arrive() {
    let dir = temp();
    let src = dir.path().join("src");
    let names = [
        "-",
        "--",
        "-k",
        "--help",
        "...",
        "..x",
        ".hidden",
        " ",
        " lead",
        "trail ",
        "*",
        "?",
        "[a]",
        "a\"b",
        "a'b",
        "a\\b",
        "a\\nb",
        "$HOME",
        "`id`",
        "%s%n",
        "{}",
        "~",
        "#",
        "a\tb",
        "a\r\nb",
        "\u{1b}[31mred",
        "ünï",
        "名前",
        "\u{202e}rtl",
        "e\u{301}",
        "é",
    ];
    for name in names {
        write(&src.join(name), name.as_bytes());
        fs::create_dir_all(src.join("dirs").join(name)).unwrap();
        symlink(name, src.join("dirs").join(name).join("link")).unwrap();
    }
    tree::age(&src);
    copy_exactly(&Job::ranks(2), &src, &dir.path().join("dst"));
}

#[test]
fn sources_and_destinations_may_have_such_names_themselves() {
    let dir = temp();
    for name in [b"\xff\xfe".as_slice(), b"with\nnewline", b" "] {
        let src = raw(dir.path(), name);
        noise_file(&src.join("f"), 100);
        let dst = raw(dir.path(), &[name, b"-dst"].concat());
        copy_exactly(&Job::ranks(2), &src, &dst);
    }
    // Behind `--` even what looks like an option is a name.
    let home = temp();
    noise_file(&home.path().join("--help/f"), 10);
    let there = home.path().join("--help");
    let outcome = Job::alone().run([OsStr::new("--"), there.as_os_str(), home.path().join("-k").as_os_str()]);
    outcome.assert_code(0);
    oracle::assert_same(&there, &home.path().join("-k"), oracle::Aspects::ALL);
}

#[test]
fn names_of_255_bytes_and_targets_of_4095_arrive() {
    let dir = temp();
    let src = dir.path().join("src");
    let name = "n".repeat(255);
    noise_file(&src.join(&name).join(&name).join(&name), 300_000);
    noise_file(&src.join(OsStr::from_bytes(&[0xfe; 255])), 10);
    symlink("t".repeat(4095), src.join("long-target")).unwrap();
    symlink(OsStr::from_bytes(b"\xff/../\xfe"), src.join("odd-target")).unwrap();
    tree::age(&src);
    let job = Job::ranks(2).options(["-k", "64K", "-b", "16K"]);
    let copied = copy_exactly(&job, &src, &dir.path().join("dst"));
    let entry = &copied.manifest().entries[b"odd-target".as_slice()];
    assert!(entry.get("target").is_none() && entry["target_b64"].is_string(), "{entry}");
}

#[test]
fn paths_longer_than_path_max_arrive() {
    let dir = temp();
    let src = dir.path().join("src");
    tree::deep_chain(&src, 30, 240);
    let longest = oracle::walk(&src).into_keys().map(|path| path.len()).max().unwrap();
    assert!(longest > 4096, "{longest}");
    copy_exactly(&Job::ranks(2), &src, &dir.path().join("dst"));
}

#[test]
fn entries_are_sorted_by_bytes_not_by_directories() {
    let dir = temp();
    let src = dir.path().join("src");
    for name in ["a/x", "a-b", "a.b", "a0", "A", "a/b/c", "aa", "b", "\u{7f}", "é"] {
        write(&src.join(name), b"1");
    }
    write(&raw(&src, b"\xff"), b"2");
    // The checker holds the order against the bytes of the paths.
    copy_exactly(&Job::ranks(4), &src, &dir.path().join("dst"));
}

#[test]
fn only_the_top_of_a_source_may_not_hold_the_programs_own_name() {
    let dir = temp();
    let src = dir.path().join("src");
    noise_file(&src.join("below/.pcopy/manifest.jsonl"), 100);
    noise_file(&src.join("below/.pcopy2"), 100);
    noise_file(&src.join(".pcopyx"), 100);
    tree::age(&src);
    copy_exactly(&Job::ranks(2), &src, &dir.path().join("dst"));
}
