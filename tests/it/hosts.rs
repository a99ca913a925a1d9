//! Several hosts: every one takes its part, and one that does not see the destination stops the job before anything
//! is written (issue 2, items 2 and 7).

use std::fs;

use serde_json::json;

use crate::support::copy::{assert_exact, copy};
use crate::support::hosts::Hosts;
use crate::support::skip::need;
use crate::support::tree::{self, KIB, temp};

#[test]
fn a_copy_over_three_hosts_is_exact_and_the_manifest_names_them() {
    let hosts = need!(Hosts::three());
    let dir = temp();
    let src = tree::odd_tree(&dir.path().join("src"), 64 * KIB, 16 * KIB);
    tree::small_files(&src.join("small"), 10, 30);
    tree::age(&src);
    let job = hosts.job(2).options(["-k", "64K", "-b", "16K"]);
    let copied = copy(&job, &[&src], &dir.path().join("dst"));
    copied.outcome.assert_code(0);
    assert_exact(&copied, &src);
    let named: Vec<_> = hosts.all.iter().map(|host| json!({"host": host.name, "ranks": 2})).collect();
    assert_eq!(copied.manifest().header["hosts"], json!(named), "{}", copied.outcome.told());
}

#[test]
fn a_host_that_sees_an_empty_directory_in_place_of_the_destination_is_named_and_nothing_is_left() {
    let hosts = need!(Hosts::three());
    let dir = temp();
    tree::small_files(&dir.path().join("src"), 2, 5);
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    let third = &hosts.all[2];
    third.run(&["mount", "-t", "tmpfs", "tmpfs", store.to_str().unwrap()]);
    // The host waits for the file system to show what rank 0 sees, and progress would be told meanwhile.
    let job = hosts.job(1).options(["--progress", "0"]);
    let outcome = job.run([&dir.path().join("src/"), &store]);
    outcome.assert_code(2);
    let lines = outcome.lines_of_pcopy();
    assert_eq!(lines.len(), 1, "{}", outcome.told());
    outcome.assert_says(&format!("rank 2 on {}: ", third.name)).assert_says(store.to_str().unwrap());
    assert_eq!(fs::read_dir(&store).unwrap().count(), 0, "left behind by {}", outcome.told());
    assert_eq!(third.run(&["ls", "-A", store.to_str().unwrap()]), "", "on the host that does not see it");
}

#[test]
fn a_host_that_does_not_see_the_destination_at_all_is_named_and_nothing_is_left() {
    let hosts = need!(Hosts::three());
    let dir = temp();
    let src = tree::small_files(&dir.path().join("src"), 2, 5);
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    let second = &hosts.all[1];
    second.run(&["mount", "-t", "tmpfs", "tmpfs", store.to_str().unwrap()]);
    let outcome = hosts.job(1).run([&src, &store.join("dst")]);
    outcome.assert_code(2).assert_says(&format!("rank 1 on {}: ", second.name));
    assert_eq!(outcome.lines_of_pcopy().len(), 1, "{}", outcome.told());
    assert_eq!(fs::read_dir(&store).unwrap().count(), 0, "left behind by {}", outcome.told());
}
