//! Runs of the same command over copies where two things meet: links that were separated, several sources, options that
//! leave what is there, paths that lead elsewhere by now (issue 4, item 2).

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use crate::support::journal::kill_at;
use crate::support::launch::Job;
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle::{self, Aspects};
use crate::support::resumed::job;
use crate::support::skip::need;
use crate::support::tree::{chmod, noise_file, set_times, temp, write};
use crate::support::whole::temporaries;

/// Runs with these operands, to exit code 0.
#[track_caller]
fn copied(job: &Job, operands: &[&Path]) {
    job.run(operands).assert_code(0);
}

#[test]
fn names_that_are_no_links_of_each_other_any_more_are_separated_in_the_copy_too() {
    for ranks in [1, 3] {
        let dir = temp();
        let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
        fs::create_dir(&src).unwrap();
        for (owner, link) in [("a", "b"), ("c", "d"), ("c", "e"), ("c", "f")] {
            if !src.join(owner).exists() {
                write(&src.join(owner), b"data");
                set_times(&src.join(owner), (1_000_000_000, 0), (1_000_000_000, 0));
            }
            fs::hard_link(src.join(owner), src.join(link)).unwrap();
        }
        copied(&job(ranks), &[&src, &dst]);
        // The same content and times in another file, with another mode: b alone, and two names of the other four.
        for names in [&["b"][..], &["e", "f"]] {
            let new = dir.path().join("new");
            write(&new, b"data");
            set_times(&new, (1_000_000_000, 0), (1_000_000_000, 0));
            chmod(&new, 0o600);
            for name in names {
                fs::remove_file(src.join(name)).unwrap();
                fs::hard_link(&new, src.join(name)).unwrap();
            }
            fs::remove_file(new).unwrap();
        }
        copied(&job(ranks), &[&src, &dst]);
        oracle::assert_same(&src, &dst, Aspects::ALL);
    }
}

#[test]
fn what_a_complete_copy_left_or_made_is_left_where_the_user_wants_what_is_there() {
    let dir = temp();
    let [a, b, dst] = ["a", "b", "dst"].map(|name| dir.path().join(name));
    for (source, content) in [(&a, "first"), (&b, "other")] {
        fs::create_dir(source).unwrap();
        write(&source.join("f"), content.as_bytes());
    }
    fs::create_dir(&dst).unwrap();
    let (a, b) = (a.join(""), b.join(""));
    let job = job(1).options(["--no-clobber"]);
    copied(&job, &[&a, &b, &dst]);
    let made = fs::read(dst.join("f")).unwrap();
    copied(&job, &[&a, &b, &dst]);
    assert_eq!(fs::read(dst.join("f")).unwrap(), made);
    // Of one source, which has changed since.
    for option in ["--no-clobber", "--update"] {
        let dst = dir.path().join(option);
        let job = crate::support::resumed::job(2).options([option]);
        write(&a.join("f"), b"first");
        copied(&job, &[&a, &dst]);
        write(&a.join("f"), b"of 2001");
        set_times(&a.join("f"), (1_000_000_000, 0), (1_000_000_000, 0));
        copied(&job, &[&a, &dst]);
        assert_eq!(fs::read(dst.join("f")).unwrap(), b"first", "{option}");
    }
}

#[test]
fn a_source_behind_a_link_that_leads_elsewhere_by_now_is_copied_to_the_same_place() {
    let dir = temp();
    for (name, content) in [("one", "old"), ("two", "new one")] {
        fs::create_dir_all(dir.path().join(name).join("data")).unwrap();
        write(&dir.path().join(name).join("data/f"), content.as_bytes());
    }
    let (current, dst) = (dir.path().join("current"), dir.path().join("dst"));
    symlink("one", &current).unwrap();
    copied(&job(2), &[&current.join("data"), &dst]);
    fs::remove_file(&current).unwrap();
    symlink("two", &current).unwrap();
    let outcome = job(2).run([&current.join("data"), &dst]);
    outcome.assert_code(0).assert_says("another job than the one recorded there (changed: sources)");
    oracle::assert_same(&dir.path().join("two/data"), &dst, Aspects::ALL);
}

#[test]
fn a_large_file_of_one_source_survives_the_end_of_the_directory_of_another() {
    for ranks in [1, 3] {
        let dir = temp();
        let [a, large, dst] = ["a", "large", "dst"].map(|name| dir.path().join(name));
        fs::create_dir(&a).unwrap();
        write(&a.join("small"), b"x");
        noise_file(&large, 20_000_000);
        fs::create_dir(&dst).unwrap();
        for content in [1, 2] {
            write(&a.join("small"), &[content]);
            set_times(&large, (1_000_000_000, 0), (1_000_000_000 + i64::from(content), 0));
            copied(&job(ranks), &[&a.join(""), &large, &dst]);
            assert_eq!(fs::read(dst.join("large")).unwrap(), fs::read(&large).unwrap());
            assert_eq!(temporaries(&dst), [""; 0]);
        }
    }
}

#[test]
fn a_single_file_with_a_state_directory_goes_into_its_directory_again() {
    let dir = temp();
    let [file, dst, state] = ["file", "dst", "state"].map(|name| dir.path().join(name));
    write(&file, b"content");
    fs::create_dir(&dst).unwrap();
    chmod(&dst, 0o1700);
    let job = job(1).options(["--state-dir".as_ref(), state.as_os_str()]);
    for _ in 0..2 {
        copied(&job, &[&file, &dst]);
        assert_eq!(fs::read(dst.join("file")).unwrap(), b"content");
    }
}

#[test]
fn what_is_left_of_a_large_file_in_a_directory_that_has_another_name_now_is_removed() {
    let dir = temp();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    fs::create_dir_all(src.join("sub")).unwrap();
    noise_file(&src.join("sub/large"), 60_000_000);
    kill_at(&job(2), [&src, &dst], &dst.join(".pcopy"), 20);
    assert!(!temporaries(&dst).is_empty());
    fs::rename(src.join("sub"), src.join("other")).unwrap();
    copied(&job(2), &[&src, &dst]);
    assert_eq!(temporaries(&dst), [""; 0]);
}

#[test]
fn space_that_ends_for_directories_alone_stops_the_copy() {
    let mount = need!(Mount::new(FileSystem::Ext4, 20));
    let dir = temp();
    let src = dir.path().join("src");
    // More than a small ext4 has inodes.
    for number in 0..8000 {
        fs::create_dir_all(src.join(format!("{}/{number}", number % 10))).unwrap();
    }
    for ranks in [1, 2] {
        let dst = mount.path().join(ranks.to_string());
        job(ranks).run([&src, &dst]).assert_code(75).assert_says("mkdir destination: No space left on device");
        assert!(dst.metadata().unwrap().ino() > 0);
        fs::remove_dir_all(&dst).unwrap();
    }
}
