//! What has changed between two runs of a job, at the source or at the destination, is taken over, and nothing else is
//! done again (issue 4); hard links and what is to be left are as without a kill.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::support::chance::{self, Chance};
use crate::support::fuse::{Faults, FuseMount};
use crate::support::journal::kill_at;
use crate::support::launch::{Job, NOBODY};
use crate::support::listing::{Listing, assert_untouched, listing};
use crate::support::manifest::{self, Expect};
use crate::support::oracle::{self, Aspects};
use crate::support::resumed::{Case, both, bytes_of, job, number};
use crate::support::skip::{self, need};
use crate::support::sys;
use crate::support::told;
use crate::support::tree::{self, chmod, noise, noise_file, raw, set_times, temp, write};
use crate::support::whole::{Place, unfinished};

// ---- what has changed meanwhile

#[test]
fn what_changed_in_the_source_meanwhile_is_taken_over_and_nothing_else() {
    for (complete, case) in both() {
        let files = case.files();
        let [same_size, longer, gone, moded] = [3, 20, 40, 60].map(|at| files[at].clone());
        let (src, dst) = (&case.place.src, &case.place.root);
        let len = raw(src, &same_size).metadata().unwrap().len();
        write(&raw(src, &same_size), &noise(usize::try_from(len).unwrap(), 99));
        write(&raw(src, &longer), &noise(50_000, 98));
        fs::remove_file(raw(src, &gone)).unwrap();
        chmod(&raw(src, &moded), 0o601);
        noise_file(&src.join("d003/new"), 3000);
        noise_file(&src.join("new-dir/new"), 2000);
        fs::remove_file(src.join("link")).unwrap();
        symlink("another target", src.join("link")).unwrap();
        let stat = |path: &Vec<u8>| raw(dst, path).metadata().unwrap();
        let before = stat(&moded);
        let outcome = case.again(&job(2));
        outcome.assert_code(0);
        let found = oracle::differences(src, dst, Aspects::ALL);
        assert_eq!(found, [format!("{}: not in the source", oracle::show(&gone))], "{}", outcome.told());
        let manifest = case.place.manifest_among_strangers(&job(2));
        let listed: BTreeSet<_> = manifest.entries.keys().cloned().collect();
        assert_eq!(listed, oracle::walk(src).into_keys().collect(), "{}", outcome.told());
        oracle::assert_none(&unfinished(&case.place.state), &outcome.told());
        // Of what has other metadata alone no byte is copied again.
        let after = stat(&moded);
        assert_eq!((before.ino(), before.mtime(), 0o601), (after.ino(), after.mtime(), after.mode() & 0o7777));
        if complete {
            assert_eq!(number(&told::json(&outcome), "bytes_moved"), len + 50_000 + 3000 + 2000, "{}", outcome.told());
        }
    }
}

/// Size and modification time are as they were: the target of a link, and the ctime of a file, tell.
#[test]
fn what_changed_under_the_same_size_and_time_is_copied_again() {
    for (complete, case) in both() {
        let files = case.files();
        let (file, touched) = (raw(&case.place.src, &files[2]), raw(&case.place.src, &files[30]));
        let link = case.place.src.join("link");
        let metas = [&file, &link].map(|path| path.symlink_metadata().unwrap());
        let old = fs::read_link(&link).unwrap().into_os_string().into_string().unwrap();
        fs::remove_file(&link).unwrap();
        symlink(old.chars().map(|c| if c.is_ascii_alphabetic() { 'x' } else { c }).collect::<String>(), &link).unwrap();
        let content = noise(usize::try_from(metas[0].len()).unwrap(), 77);
        write(&file, &content);
        for (path, meta) in [&file, &link].into_iter().zip(&metas) {
            set_times(path, (meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec()));
        }
        // this one's ctime alone
        let meta = touched.metadata().unwrap();
        set_times(&touched, (meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec()));
        let outcome = case.again(&job(2));
        case.place.assert_whole(&job(2), &outcome);
        if complete {
            assert_eq!(number(&told::json(&outcome), "bytes_moved"), metas[0].len(), "{}", outcome.told());
        }
    }
}

#[test]
fn where_each_look_shows_another_ctime_the_changes_that_count_can_be_chosen() {
    let fuse = need!(FuseMount::new(Faults { moving_ctime: true, attributes_and_holes: true, ..Faults::default() }));
    let (below, src) = (fuse.backing().join("src"), fuse.path().join("src"));
    tree::small_files(&below, 4, 20);
    noise_file(&below.join("in-ranges"), 300_000);
    tree::age(&below);
    let dir = temp();
    let run =
        |name: &str, options: &[&str]| job(2).options(["--json"]).options(options).run([&src, &dir.path().join(name)]);
    let outcome = run("by-ctime", &[]);
    outcome.assert_code(1).assert_says("--changes=mtime");
    for changes in ["--changes=mtime", "--changes=none"] {
        let dst = dir.path().join(&changes[10..]);
        let name = dst.file_name().unwrap().to_str().unwrap();
        run(name, &[changes]).assert_code(0);
        let again = run(name, &[changes]);
        again.assert_code(0);
        assert_eq!(number(&told::json(&again), "bytes_moved"), 0, "{}", again.told());
        oracle::assert_none(&oracle::differences(&below, &dst, Aspects::ALL), &again.told());
        write(&below.join("d000/f0001"), &noise(4321, 5));
        chmod(&below.join("d001/f0001"), 0o604);
        let again = run(name, &[changes]);
        again.assert_code(0);
        assert_eq!(number(&told::json(&again), "bytes_moved"), 4321, "{}", again.told());
        oracle::assert_none(&oracle::differences(&below, &dst, Aspects::ALL), &again.told());
        write(&below.join("d000/f0001"), &noise(1234, 6));
        chmod(&below.join("d001/f0001"), 0o644);
        tree::age(&below);
    }
}

#[test]
fn an_entry_that_is_of_another_type_now_is_made_anew() {
    for (_, case) in both() {
        let files = case.files();
        let (src, dst) = (&case.place.src, &case.place.root);
        fs::remove_file(raw(src, &files[5])).unwrap();
        symlink("target", raw(src, &files[5])).unwrap();
        fs::remove_file(src.join("link")).unwrap();
        noise_file(&src.join("link"), 500);
        let outcome = case.completes(&job(2));
        assert_eq!(fs::read_link(raw(dst, &files[5])).unwrap(), Path::new("target"), "{}", outcome.told());
    }
}

#[test]
fn what_changed_at_the_destination_meanwhile_is_copied_again() {
    for (complete, case) in both() {
        let files = case.files();
        let (src, dst) = (&case.place.src, &case.place.root);
        let [deleted, truncated, grown, touched, replaced] = [2, 12, 22, 32, 42].map(|at| raw(dst, &files[at]));
        fs::remove_file(deleted).unwrap();
        OpenOptions::new().write(true).open(truncated).unwrap().set_len(7).unwrap();
        write(&grown, &noise(20_000, 5));
        // Other bytes, and the time tells.
        let len = usize::try_from(touched.metadata().unwrap().len()).unwrap();
        write(&touched, &noise(len, 6));
        set_times(&touched, (5, 0), (5, 0));
        fs::remove_file(&replaced).unwrap();
        symlink("elsewhere", replaced).unwrap();
        let elsewhere = files.iter().rev().find(|path| !files[..43].iter().any(|other| other[..4] == path[..4]));
        fs::remove_dir_all(raw(dst, &elsewhere.unwrap()[..4])).unwrap();
        if complete {
            fs::remove_file(dst.join("link")).unwrap();
            fs::remove_dir(dst.join("empty")).unwrap();
        }
        let outcome = case.completes(&job(3));
        assert!(number(&told::json(&outcome), "bytes_moved") < bytes_of(src), "{}", outcome.told());
    }
}

#[test]
fn of_directories_those_that_changed_are_done_again_and_no_others() {
    let case = Case::complete(2);
    let (src, dst) = (&case.place.src, &case.place.root);
    chmod(&src.join("d001"), 0o751);
    sys::set_xattr(&src.join("d002"), "user.new", b"value").unwrap();
    set_times(&src.join("d003"), (5, 0), (6, 7));
    fs::remove_file(src.join("d004/f0000")).unwrap();
    fs::remove_file(dst.join("d004/f0000")).unwrap();
    noise_file(&src.join("d005/new"), 10);
    chmod(&dst.join("d006"), 0o711);
    chmod(&dst.join("d007"), 0o500);
    set_times(&dst.join("d008"), (5, 0), (6, 7));
    fs::remove_file(dst.join("d009/f0000")).unwrap();
    fs::remove_dir_all(dst.join("d010")).unwrap();
    let changed: Vec<_> = (1..=10).map(|n| format!("d{n:03}").into_bytes()).collect();
    // The marker that all ranks look for is made in the top.
    let others = || -> Listing {
        let others = listing(dst).into_iter().filter(|(path, _)| raw(dst, path).symlink_metadata().unwrap().is_dir());
        let is_other =
            |path: &[u8]| !path.is_empty() && !path.starts_with(b".pcopy") && !changed.contains(&path.to_vec());
        others.filter(|(path, _)| is_other(path)).collect()
    };
    let before = others();
    assert_eq!(before.len(), 16, "{before:?}");
    let outcome = case.again(&job(2));
    assert_untouched(&before, &others(), &outcome.told());
    case.place.assert_whole(&job(2), &outcome);
    // Each is counted once, whichever way it went.
    let dirs = oracle::walk(src).values().filter(|node| node.kind == oracle::Kind::Dir).count();
    assert_eq!(number(&told::json(&outcome), "dirs"), u64::try_from(dirs).unwrap(), "{}", outcome.told());
}

#[test]
fn a_destination_that_is_gone_altogether_is_copied_again() {
    let case = Case::complete(1);
    fs::remove_dir_all(&case.place.root).unwrap();
    assert_eq!(number(&told::json(&case.completes(&job(2))), "runs"), 1);
}

// ---- hard links, what exists

/// Files with up to five names, in many directories; two of them large.
fn linked(at: &Path) -> PathBuf {
    let src = tree::small_files(at, 20, 40);
    for number in 0..300 {
        let file = src.join(format!("d{:03}/f{:04}", number % 20, number % 40));
        for name in 0..1 + number % 4 {
            let other = format!("d{:03}/name{number:03}-{name}", (number * 7 + name * 3) % 20);
            fs::hard_link(&file, src.join(other)).unwrap();
        }
    }
    for number in 0..2 {
        let file = src.join(format!("d00{number}/large"));
        noise_file(&file, 1_000_000 + number);
        for name in ["a", "z"] {
            fs::hard_link(&file, src.join(format!("d01{number}/{name}-large"))).unwrap();
        }
    }
    symlink("target", src.join("d000/symlink")).unwrap();
    fs::hard_link(src.join("d000/symlink"), src.join("d019/symlink")).unwrap();
    tree::age(&src);
    src
}

#[test]
fn hard_links_are_the_same_after_kills() {
    let mut chance = Chance::new(chance::seed("hard links"));
    let dir = temp();
    let src = linked(&dir.path().join("src"));
    for _ in 0..3 {
        let place = Place::new(&src, &dir.path().join("dst"));
        for _ in 0..chance.of(1..=3) {
            let ranks = *chance.one(&[1, 2, 4]);
            kill_at(&job(ranks), [&place.src, &place.root], &place.state, chance.of(1..=180));
        }
        for ranks in [*chance.one(&[1, 2, 4]), 2] {
            place.complete(&job(ranks), [&place.src, &place.root]);
        }
        fs::remove_dir_all(&place.root).unwrap();
    }
}

#[test]
fn a_name_of_a_linked_file_that_is_gone_at_the_destination_is_linked_again() {
    let dir = temp();
    let src = linked(&dir.path().join("src"));
    let place = Place::new(&src, &dir.path().join("dst"));
    place.complete(&job(2), [&place.src, &place.root]);
    for gone in ["d007/name001-0", "d001/f0001", "d010/a-large", "d000/large", "d019/symlink"] {
        fs::remove_file(place.root.join(gone)).unwrap();
        place.complete(&job(2), [&place.src, &place.root]);
    }
    // And a new name of what is there.
    fs::hard_link(src.join("d002/f0002"), src.join("a-new-name")).unwrap();
    place.complete(&job(2), [&place.src, &place.root]);
}

#[test]
fn what_is_to_be_left_is_left_and_nothing_half_written_is() {
    for option in ["--no-clobber", "--update"] {
        let dir = temp();
        let src = tree::small_files(&dir.path().join("src"), 20, 50);
        for number in 0..6 {
            noise_file(&src.join(format!("d00{number}/large")), 2_000_000 + number);
        }
        tree::age(&src);
        let dst = dir.path().join("dst");
        let mine: Vec<_> = (0..40).map(|n| format!("d{:03}/f{:04}", n % 20, n)).chain(["d003/large".into()]).collect();
        for path in &mine {
            write(&dst.join(path), b"mine");
        }
        let job = |ranks| self::job(ranks).options([option]);
        let operands = [&src.join(""), &dst];
        let state = dst.join(".pcopy");
        for (ranks, items) in [(2, 30), (3, 90), (1, 50)] {
            kill_at(&job(ranks), operands, &state, items);
        }
        let outcome = job(2).run(operands);
        outcome.assert_code(0);
        let of_mine = |words: &String| mine.iter().any(|path| words.starts_with(&format!("{path}: ")));
        let found = oracle::differences(&src, &dst, Aspects::ALL);
        oracle::assert_none(&found.into_iter().filter(|w| !of_mine(w)).collect::<Vec<_>>(), &outcome.told());
        for path in &mine {
            assert_eq!(fs::read(dst.join(path)).unwrap(), b"mine", "{path}");
        }
        oracle::assert_none(&unfinished(&state), &outcome.told());
        let expect = Expect { root: &dst, ranks: 2, digests: true, strangers: false };
        manifest::checked(&state.join("manifest.jsonl"), &expect);
    }
}

#[test]
fn an_ordinary_user_goes_on_with_his_own_closed_directory_and_read_only_file() {
    need!(skip::root());
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("his/dst"));
    let (plain, closed) = (src.join("plain"), src.join("read-only"));
    write(&plain, b"plain");
    write(&closed, b"read-only");
    fs::create_dir(dir.path().join("his")).unwrap();
    sys::set_xattr(&closed, "user.note", b"old").unwrap();
    for path in [&src, &plain, &closed, &dir.path().join("his")] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    chmod(&closed, 0o444);
    chmod(&src, 0o555);
    tree::age(&src);
    let place = Place::new(&src, &dst);
    for (options, note) in
        [(vec![], b"old"), (vec![], b"new"), (vec!["--restart"], b"odd"), (vec!["--no-preserve=mode"], b"end")]
    {
        sys::set_xattr(&closed, "user.note", note).unwrap();
        let job = Job::ranks(2).by_nobody(dir.path()).options(&options);
        let outcome = job.run([&src, &dst]);
        outcome.assert_code(0);
        assert_eq!(sys::get_xattr(&dst.join("read-only"), b"user.note").unwrap(), note, "{}", outcome.told());
        let found = oracle::differences(&src, &dst, Aspects::ALL);
        oracle::assert_none(&found, &outcome.told());
        oracle::assert_none(&unfinished(&place.state), &outcome.told());
    }
}
