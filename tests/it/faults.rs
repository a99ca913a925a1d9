//! Faults of file systems: what passes is tried again, what stays fails its entry, and what concerns everything stops
//! the copy, which the same command then completes (issue 4, items 4 to 6). Exit code 0 is never wrong.

use std::path::{Path, PathBuf};

use libc::{EAGAIN, EDQUOT, EIO, ENOENT, ENOSPC, EROFS, ESTALE, ETIMEDOUT};
use nix::sys::statvfs::statvfs;

use crate::support::copy::copy;
use crate::support::faulty::{Scene, Side};
use crate::support::fuse::{Call, Faults, FuseMount, Trouble};
use crate::support::interrupted::{Task, finished_files, half_written, half_written_as_finished, wait_for};
use crate::support::launch::{Job, Outcome};
use crate::support::mounts::{FileSystem, Mount};
use crate::support::oracle;
use crate::support::parallel;
use crate::support::skip::need;
use crate::support::told;
use crate::support::tree::{self, MIB, noise_file, temp, write};

fn job(ranks: usize) -> Job {
    Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--json"])
}

/// A few entries of each kind, one of them a file in ranges.
fn few(at: &Path) {
    for name in ["a", "b", "d/c", "d/victim", "d/e/f"] {
        noise_file(&at.join(name), 5000 + name.len());
    }
    noise_file(&at.join("d/large"), 300_000);
    std::os::unix::fs::symlink("d/c", at.join("link")).unwrap();
}

/// Not a success, and nothing half-written looks finished: where nothing can be removed any more it stays.
#[track_caller]
fn assert_failed(scene: &Scene, outcome: &Outcome, codes: &[i32]) {
    let code = outcome.code();
    assert!(code.is_some_and(|code| codes.contains(&code)), "not one of {codes:?}: {}", outcome.told());
    let found = half_written_as_finished(&scene.task.real_src, &scene.task.real_dst);
    oracle::assert_none(&found, &outcome.told());
}

#[track_caller]
fn retries(outcome: &Outcome) -> u64 {
    let told = told::json(outcome);
    told["retries"].as_u64().unwrap_or_else(|| panic!("no retries: {told}"))
}

// What passes.

const TRANSIENT: [i32; 4] = [EIO, ESTALE, ETIMEDOUT, EAGAIN];

const READING: [&[Call]; 6] =
    [&[Call::Lookup], &[Call::Open], &[Call::Read], &[Call::GetAttr], &[Call::OpenDir], &[Call::ReadDir]];

const WRITING: [&[Call]; 7] = [
    &[Call::Lookup],
    &[Call::Create],
    &[Call::OpenToWrite],
    &[Call::Write],
    &[Call::SetAttr],
    &[Call::Rename],
    &[Call::MakeDir],
];

/// Each call of each side with one errno, reads and writes with every errno.
fn transient_cases() -> Vec<(Side, &'static [Call], i32)> {
    let sides = READING.map(|calls| (Side::Source, calls)).into_iter();
    let sides = sides.chain(WRITING.map(|calls| (Side::Destination, calls)));
    let mut cases: Vec<_> =
        sides.zip(TRANSIENT.iter().cycle()).map(|((side, calls), errno)| (side, calls, *errno)).collect();
    for errno in TRANSIENT {
        cases.push((Side::Source, &[Call::Read], errno));
        cases.push((Side::Destination, &[Call::Write], errno));
    }
    cases
}

#[test]
fn an_error_that_passes_is_tried_again_and_counted_and_the_copy_is_exact() {
    drop(need!(FuseMount::new(Faults::default())));
    parallel::for_each(&transient_cases(), |number, (side, calls, errno)| {
        let scene = Scene::new(*side, job([1, 3][number % 2]), few).unwrap();
        // The kernel itself asks again: twice for a path that is stale, and for what it read ahead.
        let count = if *errno == ESTALE || calls.contains(&Call::Read) { 4 } else { 2 };
        scene.control().add(Trouble::new(calls, *errno).entries().first_of_each(count));
        let outcome = scene.task.run();
        let case = format!("{side:?} {calls:?} errno {errno}: {}", outcome.told());
        assert!(scene.control().struck() > 0, "nothing failed: {case}");
        assert_eq!(outcome.code(), Some(0), "{case}");
        assert!(retries(&outcome) > 0, "{case}");
        scene.task.assert_complete(&outcome);
    });
}

#[test]
fn what_another_node_has_just_made_may_be_seen_late() {
    for ranks in [1, 3] {
        let scene = need!(Scene::new(Side::Destination, job(ranks), few));
        scene.control().add(Trouble::new(&[Call::OpenToWrite, Call::OpenDir], ENOENT).entries().first_of_each(2));
        let outcome = scene.task.run();
        assert!(scene.control().struck() > 0, "nothing failed: {}", outcome.told());
        outcome.assert_code(0);
        assert!(retries(&outcome) > 0, "{}", outcome.told());
        scene.task.assert_complete(&outcome);
    }
}

#[test]
fn short_reads_and_writes_between_errors_that_pass_are_put_together() {
    for side in [Side::Source, Side::Destination] {
        let faults = Faults { short_read: Some(10_007), short_write: Some(5_003), ..Faults::default() };
        let scene = need!(Scene::with(faults, side, job(3), few));
        scene.control().add(Trouble::new(&[Call::Read, Call::Write], EIO).entries().after(3).first_of_each(2));
        let outcome = scene.task.run();
        assert!(scene.control().struck() > 0, "nothing failed: {}", outcome.told());
        outcome.assert_code(0);
        scene.task.assert_complete(&outcome);
    }
}

#[test]
fn the_summary_for_people_counts_what_was_tried_again() {
    let scene = need!(Scene::new(Side::Source, Job::ranks(2), few));
    scene.control().add(Trouble::new(&[Call::Open], EIO).named("victim").first(2));
    let outcome = scene.task.run();
    outcome.assert_code(0);
    let counted = told::count(&outcome, "Retried");
    assert!(counted.is_some_and(|count| count >= 2), "{}", outcome.told());
}

#[test]
fn without_retries_the_first_error_fails_its_entry() {
    for ranks in [1, 3] {
        let scene = need!(Scene::new(Side::Source, job(ranks).options(["--retries", "0"]), few));
        // One read, for which the kernel asks twice.
        scene.control().add(Trouble::new(&[Call::Read], EIO).named("victim").first(2));
        assert_only_victim_failed(&scene, EIO);
        scene.assert_completes_without_faults();
    }
}

// What stays, at one entry.

/// Exit code 1, and no entry failed but `d/victim`.
#[track_caller]
fn assert_only_victim_failed(scene: &Scene, errno: i32) {
    let copied = copy(&scene.task.job, &[&scene.task.src], &scene.task.dst);
    copied.outcome.assert_code(1);
    let manifest = copied.manifest();
    let failed: Vec<_> = manifest.failed().map(|(path, _)| oracle::show(path)).collect();
    assert_eq!(failed, ["d/victim"], "{}", copied.outcome.told());
    assert_eq!(manifest.errno("d/victim"), i64::from(errno));
    oracle::assert_none(&half_written(&scene.task.real_src, &scene.task.real_dst), &copied.outcome.told());
    let found = oracle::differences(&scene.task.real_src, &scene.task.real_dst, oracle::Aspects::ALL);
    assert_eq!(found, ["d/victim: missing"], "{}", copied.outcome.told());
}

#[test]
fn an_error_that_stays_fails_its_entry_only_and_the_same_command_copies_it_later() {
    let cases: [(Side, &[Call]); 4] = [
        (Side::Source, &[Call::Read]),
        (Side::Source, &[Call::Open]),
        (Side::Source, &[Call::Lookup]),
        (Side::Destination, &[Call::Create]),
    ];
    for (number, (side, calls)) in cases.into_iter().enumerate() {
        let scene = need!(Scene::new(side, job([1, 3][number % 2]).limit(40), few));
        scene.control().add(Trouble::new(calls, EIO).named("victim"));
        assert_only_victim_failed(&scene, EIO);
        scene.assert_completes_without_faults();
    }
}

#[test]
fn a_directory_that_cannot_be_listed_is_named_and_the_rest_is_there() {
    for (ranks, call) in [(1, &[Call::ReadDir]), (3, &[Call::OpenDir])] {
        let scene = need!(Scene::new(Side::Source, job(ranks), |at| {
            few(at);
            noise_file(&at.join("locked/inside"), 100);
        }));
        scene.control().add(Trouble::new(call, EIO).named("locked"));
        let copied = copy(&scene.task.job, &[&scene.task.src], &scene.task.dst);
        copied.outcome.assert_code(1);
        let failed: Vec<_> = copied.manifest().failed().map(|(path, _)| oracle::show(path)).collect();
        assert_eq!(failed, ["locked"], "{}", copied.outcome.told());
        let found = oracle::differences(&scene.task.real_src, &scene.task.real_dst, oracle::Aspects::ALL);
        let elsewhere: Vec<_> = found.into_iter().filter(|words| !words.starts_with("locked")).collect();
        oracle::assert_none(&elsewhere, &copied.outcome.told());
        scene.assert_completes_without_faults();
    }
}

// What comes late: at fsync and close.

#[test]
fn an_error_at_fsync_or_close_alone_is_never_a_success_with_a_wrong_copy() {
    drop(need!(FuseMount::new(Faults::default())));
    let calls: [&'static [Call]; 2] = [&[Call::Fsync], &[Call::Flush]];
    let kinds = calls.into_iter().flat_map(|call| [EIO, ENOSPC, EDQUOT].map(|errno| (call, errno)));
    let cases: Vec<_> = kinds.flat_map(|(call, errno)| [(call, errno, true), (call, errno, false)]).collect();
    parallel::for_each(&cases, |number, (call, errno, stays)| {
        let scene = Scene::new(Side::Destination, job([1, 3][number % 2]), few).unwrap();
        let trouble = Trouble::new(call, *errno).entries().loses_data();
        scene.control().add(if *stays { trouble } else { trouble.first_of_each(1) });
        let outcome = scene.task.run();
        let case = format!("{call:?} errno {errno}, stays: {stays}: {}", outcome.told());
        assert!(scene.control().struck() > 0, "nothing failed: {case}");
        assert!(!stays || outcome.code() != Some(0), "{case}");
        if outcome.code() == Some(0) {
            return scene.task.assert_complete(&outcome);
        }
        if *errno != EIO {
            scene.task.assert_stopped(&outcome, &["no space"]);
        }
        scene.assert_completes_without_faults();
    });
}

#[test]
fn what_a_close_loses_never_takes_the_place_of_an_older_file() {
    drop(need!(FuseMount::new(Faults::default())));
    for ranks in [1, 3] {
        let scene = Scene::new(Side::Destination, job(ranks).options(["--retries", "0"]), few).unwrap();
        scene.task.assert_complete(&scene.task.run());
        let names = ["a", "d/victim"];
        let olds = names.map(|name| std::fs::read(scene.task.real_dst.join(name)).unwrap());
        names.iter().for_each(|name| noise_file(&scene.task.real_src.join(name), 7000 + name.len()));
        scene.control().add(Trouble::new(&[Call::Flush], EIO).entries().loses_data());
        let outcome = scene.task.run();
        outcome.assert_code(1);
        for (name, old) in names.iter().zip(olds) {
            assert!(std::fs::read(scene.task.real_dst.join(name)).unwrap() == old, "{name}: {}", outcome.told());
        }
        scene.assert_completes_without_faults();
    }
}

#[test]
fn a_file_is_made_durable_while_the_next_one_is_copied() {
    drop(need!(FuseMount::new(Faults::default())));
    let scene = Scene::new(Side::Destination, job(1).options(["--threads", "1"]), small_files).unwrap();
    scene.control().delay_fsync(20);
    let outcome = scene.task.run();
    scene.task.assert_complete(&outcome);
    let requests = scene.control().take_requests();
    assert!(requests.contains_key("create beside fsync"), "{requests:?}");
    assert!(requests["fsync"] >= 160, "each file is made durable: {requests:?}");
}

#[test]
fn a_destination_that_takes_nothing_from_some_call_on_is_never_a_success() {
    drop(need!(FuseMount::new(Faults::default())));
    let cases: Vec<_> = [0, 2, 5, 10, 20, 40, 60].into_iter().flat_map(|after| [(1, after), (3, after)]).collect();
    parallel::for_each(&cases, |_, (ranks, after)| {
        let scene = Scene::new(Side::Destination, job(*ranks), few).unwrap();
        const ALL: &[Call] = &[Call::Create, Call::Write, Call::Rename, Call::SetAttr, Call::MakeDir, Call::Fsync];
        // Its own records too.
        scene.control().add(Trouble::new(ALL, EIO).after(*after));
        let outcome = scene.task.run();
        let struck = scene.control().struck() > 0;
        assert!(!struck || outcome.code() != Some(0), "after {after} calls: {}", outcome.told());
        scene.control().lift();
        if !scene.task.state().join("job.json").exists() {
            // It came to no record of what it does, and so must not have come to anything else.
            assert_eq!(finished_files(&scene.task.real_dst), 0, "{}", outcome.told());
            std::fs::remove_dir_all(&scene.task.dst).or_else(absent).unwrap();
        }
        scene.task.assert_completes();
    });
}

fn absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

// No space.

fn small_files(at: &Path) {
    tree::small_files(at, 4, 40);
}

fn large_file(at: &Path) {
    noise_file(&at.join("large"), 4 * MIB);
    noise_file(&at.join("small"), 100);
}

/// The bytes of all files.
fn content_bytes(src: &Path) -> u64 {
    oracle::walk(src).values().map(|node| node.size).sum()
}

/// It stopped for want of space, in order, and said so in one line: where, what is free, what to do.
#[track_caller]
fn assert_stopped_for_space(task: &Task, outcome: &Outcome) {
    task.assert_stopped(outcome, &["no space"]);
    let at = task.dst.to_str().unwrap();
    let lines = outcome.lines_of_pcopy();
    let about: Vec<_> = lines.iter().filter(|line| line.contains(at) && line.contains("free")).collect();
    assert_eq!(about.len(), 1, "lines about the space in {}", outcome.told());
}

#[test]
fn a_quota_or_a_file_system_that_is_full_stops_the_copy_and_with_more_space_it_goes_on() {
    drop(need!(FuseMount::new(Faults::default())));
    type Fill = fn(&Path);
    // How much of the tree there is room for, in percent.
    let cases: [(usize, Fill, u64, i32); 8] = [
        (1, small_files, 40, ENOSPC),
        (3, small_files, 40, EDQUOT),
        (1, large_file, 50, EDQUOT),
        (3, large_file, 50, ENOSPC),
        (1, small_files, 98, EDQUOT),
        (3, small_files, 98, ENOSPC),
        (1, large_file, 98, ENOSPC),
        (3, large_file, 98, EDQUOT),
    ];
    parallel::for_each(&cases, |_, (ranks, fill, percent, errno)| {
        let scene = Scene::new(Side::Destination, job(*ranks), fill).unwrap();
        let room = content_bytes(&scene.task.real_src) * percent / 100;
        scene.control().leave_room(room, *errno);
        let outcome = scene.task.run();
        assert_stopped_for_space(&scene.task, &outcome);
        // Still without space it comes to the same end, for a batch job too that is queued again on that.
        let outcome = scene.task.run();
        outcome.assert_code(75).assert_says("run the same command again");
        scene.assert_completes_without_faults();
    });
}

#[test]
fn space_that_is_enough_for_the_files_and_not_for_the_records_stops_the_copy() {
    drop(need!(FuseMount::new(Faults::default())));
    let cases: Vec<_> =
        [100, 102, 104, 107, 110].into_iter().flat_map(|percent| [(1, percent), (3, percent)]).collect();
    parallel::for_each(&cases, |_, (ranks, percent)| {
        let scene = Scene::new(Side::Destination, job(*ranks), small_files).unwrap();
        scene.control().leave_room(content_bytes(&scene.task.real_src) * percent / 100, ENOSPC);
        let outcome = scene.task.run();
        assert!(matches!(outcome.code(), Some(0 | 75)), "{percent} %: {}", outcome.told());
        oracle::assert_none(&half_written(&scene.task.real_src, &scene.task.real_dst), &outcome.told());
        if outcome.code() == Some(0) {
            // There was space for all but the base: the journals stay in its place.
            oracle::assert_same(&scene.task.real_src, &scene.task.real_dst, oracle::Aspects::ALL);
            assert!(scene.task.state().join("manifest.jsonl").exists(), "{}", outcome.told());
        }
        scene.assert_completes_without_faults();
    });
}

#[test]
fn a_quota_of_files_stops_the_copy_too() {
    for ranks in [1, 3] {
        let scene = need!(Scene::new(Side::Destination, job(ranks), small_files));
        scene.control().add(Trouble::new(&[Call::Create], EDQUOT).entries().after(30));
        let outcome = scene.task.run();
        assert_stopped_for_space(&scene.task, &outcome);
        scene.assert_completes_without_faults();
    }
}

/// Takes space until so many bytes are left.
fn ballast(at: &Path, left_bytes: u64) -> PathBuf {
    let told = statvfs(at).unwrap();
    let free_bytes = told.blocks_available() * told.fragment_size();
    let file = at.join("ballast");
    write(&file, &vec![1; usize::try_from(free_bytes - left_bytes).unwrap()]);
    std::fs::File::open(&file).unwrap().sync_all().unwrap();
    file
}

#[test]
fn a_full_disk_stops_the_copy_and_with_files_removed_it_goes_on() {
    type Fill = fn(&Path);
    let mixed: Fill = |at| {
        tree::small_files(&at.join("small"), 3, 40);
        noise_file(&at.join("large"), 3 * MIB);
    };
    let cases: [(usize, Fill, u64, &str); 5] = [
        (1, large_file, 50, "auto"),
        (3, large_file, 50, "always"),
        (1, mixed, 30, "auto"),
        (3, mixed, 60, "never"),
        (3, mixed, 95, "auto"),
    ];
    for (ranks, fill, percent, mode) in cases {
        let (mount, dir) = (need!(Mount::new(FileSystem::Ext4, 24)), temp());
        let src = dir.path().join("src");
        fill(&src);
        tree::age(&src);
        let ballast = ballast(mount.path(), content_bytes(&src) * percent / 100);
        let direct = job(ranks).options([format!("--direct={mode}")]);
        let task = Task::new(direct, &src, &mount.path().join("dst"));
        let outcome = task.run();
        assert_stopped_for_space(&task, &outcome);
        std::fs::remove_file(ballast).unwrap();
        let told = task.assert_completes();
        assert_eq!(told["runs"], 2, "{told}");
    }
}

#[test]
fn a_file_system_without_any_space_is_no_success_and_the_copy_can_be_made_later() {
    let scene = need!(Scene::new(Side::Destination, job(2), few));
    scene.control().leave_room(0, ENOSPC);
    let outcome = scene.task.run();
    outcome.assert_code(75).assert_says("run the same command again");
    scene.control().lift();
    if !scene.task.state().join("job.json").exists() {
        assert_eq!(finished_files(&scene.task.real_dst), 0, "{}", outcome.told());
        std::fs::remove_dir_all(&scene.task.dst).or_else(absent).unwrap();
    }
    scene.task.assert_completes();
}

// Read-only, or gone.

#[test]
fn a_destination_that_turns_read_only_ends_the_copy_and_writable_again_it_goes_on() {
    for (ranks, fill) in [(1, small_files as fn(&Path)), (3, small_files), (3, large_file)] {
        let scene = need!(Scene::new(Side::Destination, job(ranks), fill));
        scene.control().delay(3);
        let mut running = scene.task.start();
        wait_for(&mut running, "it writes", || scene.control().writes() >= 60);
        scene.control().add(Trouble::new(Call::CHANGES, EROFS));
        let outcome = running.wait();
        assert_failed(&scene, &outcome, &[75, 70, 1]);
        if outcome.code() == Some(75) {
            assert_eq!(told::json(&outcome)["stopped"], "file system gone", "{}", outcome.told());
        }
        scene.assert_completes_without_faults();
    }
}

#[test]
fn a_disk_that_turns_read_only_ends_the_copy_and_repaired_it_goes_on() {
    for ranks in [1, 3] {
        let (mount, slow) = (need!(Mount::new(FileSystem::Ext4, 24)), need!(FuseMount::new(Faults::default())));
        let src = slow.backing().join("src");
        small_files(&src);
        let task = Task::new(job(ranks), &slow.path().join("src"), &mount.path().join("dst")).really_from(&src);
        slow.control().delay(5);
        let mut running = task.start();
        wait_for(&mut running, "files are there", || finished_files(&task.dst) >= 20);
        need!(mount.turn_read_only());
        let outcome = running.wait();
        assert!(matches!(outcome.code(), Some(75 | 70 | 1)), "{}", outcome.told());
        mount.turn_writable().unwrap();
        slow.control().lift();
        task.assert_completes();
    }
}

#[test]
fn a_source_whose_mount_goes_away_stops_the_copy_and_mounted_again_it_goes_on() {
    for (ranks, fill) in [(1, small_files as fn(&Path)), (3, small_files), (3, large_file)] {
        let mut scene = need!(Scene::new(Side::Source, job(ranks), fill));
        scene.control().delay(5);
        let mut running = scene.task.start();
        wait_for(&mut running, "it reads", || scene.control().reads() >= 60);
        scene.fuse.break_off();
        let outcome = running.wait();
        scene.task.assert_stopped(&outcome, &["file system gone"]);
        scene.fuse.mount_again();
        scene.assert_completes_without_faults();
    }
}

#[test]
fn a_destination_whose_mount_goes_away_ends_the_copy_and_mounted_again_it_goes_on() {
    for (ranks, fill) in [(1, small_files as fn(&Path)), (3, small_files), (3, large_file)] {
        let mut scene = need!(Scene::new(Side::Destination, job(ranks), fill));
        scene.control().delay(5);
        let mut running = scene.task.start();
        wait_for(&mut running, "it writes", || scene.control().writes() >= 60);
        scene.fuse.break_off();
        let outcome = running.wait();
        // Its records are there too, so that it may be unable to stop in order.
        assert_failed(&scene, &outcome, &[75, 70, 1]);
        scene.fuse.mount_again();
        scene.assert_completes_without_faults();
    }
}
