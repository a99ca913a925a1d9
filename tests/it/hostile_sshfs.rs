//! A file system that sets the metadata of a link's target (sshfs: SFTP's SETSTAT follows links on the server): files
//! outside of the copy that links lead to stay as they are (issue 14, item 4).

use std::fs;
use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};

use crate::support::attacker::{EVE, THEN};
use crate::support::copy::{Copied, copy};
use crate::support::hosts::Hosts;
use crate::support::launch::Job;
use crate::support::listing::{assert_untouched, listing, unread};
use crate::support::manifest::is_unkept;
use crate::support::mounts::sshfs;
use crate::support::oracle::{self, Aspects, Kind};
use crate::support::skip::need;
use crate::support::told;
use crate::support::tree::{chmod, noise_file, set_times, temp};

/// SFTP has whole seconds.
const SECONDS: (i64, i64) = (THEN.0, 0);
const LINKS: usize = 4;

fn owned(at: &Path, owner: u32) {
    lchown(at, Some(owner), Some(owner)).unwrap();
}

/// Links of Eve's to a file and a directory of root's outside, to a file of root's in the tree, and to nothing.
fn build(src: &Path, outside: &Path) {
    noise_file(&outside.join("shadow"), 500);
    chmod(&outside.join("shadow"), 0o600);
    fs::create_dir(outside.join("dir")).unwrap();
    noise_file(&src.join("of-root"), 500);
    noise_file(&src.join("home/of-eve"), 500);
    noise_file(&src.join("home/large"), 200_000);
    let targets = [outside.join("shadow"), outside.join("dir"), PathBuf::from("../of-root"), PathBuf::from("nothing")];
    for (number, target) in targets.iter().enumerate() {
        symlink(target, src.join(format!("home/link-{number}"))).unwrap();
    }
    for (path, node) in oracle::walk(src).into_iter().rev() {
        let at = src.join(String::from_utf8(path).unwrap());
        let is_eves = node.kind == Kind::Symlink || at.ends_with("of-eve") || at.ends_with("home");
        owned(&at, if is_eves { EVE } else { 0 });
        set_times(&at, SECONDS, SECONDS);
    }
}

/// All but the owners and times of links arrived, and that these did not is told in each way.
fn assert_told(copied: &Copied, src: &Path, store: &Path) {
    copied.outcome.assert_code(0);
    let told = told::unkept_in_json(&copied.outcome);
    let links = u64::try_from(LINKS).unwrap();
    assert_eq!(
        told,
        [("ownership".to_owned(), links), ("timestamps".to_owned(), links)].into(),
        "{}",
        copied.outcome.told()
    );
    for (path, entry) in &copied.manifest().entries {
        let is_link = entry["type"] == "symlink";
        assert_eq!(
            (is_unkept(entry, "ownership"), is_unkept(entry, "timestamps")),
            (is_link, is_link),
            "{}",
            oracle::show(path)
        );
    }
    // past sshfs, which shows links as it likes
    let (before, after) = (oracle::walk(src), oracle::walk(store));
    let (links, others): (Vec<_>, Vec<_>) = before.into_iter().partition(|(_, node)| node.kind == Kind::Symlink);
    assert_eq!(links.len(), LINKS);
    let compare = |nodes: Vec<(Vec<u8>, oracle::Node)>, aspects| {
        let differ = nodes.into_iter().flat_map(|(path, node)| {
            let words = oracle::node_differences(&node, &after[&path], aspects);
            words.into_iter().map(move |words| format!("{}: {words}", oracle::show(&path)))
        });
        oracle::assert_none(&differ.collect::<Vec<_>>(), &copied.outcome.told());
    };
    compare(others, Aspects::ALL);
    compare(links, Aspects::NONE);
}

#[derive(Clone, Copy)]
enum Change {
    Nothing,
    Metadata,
    /// Each link is another one, of another time.
    Links,
}

fn make(change: Change, link: &Path, seconds: i64) {
    match change {
        Change::Nothing => {}
        Change::Metadata => owned(link, EVE),
        Change::Links => {
            let target = fs::read_link(link).unwrap();
            fs::remove_file(link).unwrap();
            symlink(Path::new("/").join(&target), link).unwrap();
            owned(link, EVE);
            set_times(link, (seconds, 0), (seconds, 0));
        }
    }
}

/// Copies to a directory that shows another one, `store`, by sshfs: at once, and again when something of the links changed.
fn copy_links(home: &Path, (mount, store): (&Path, &Path), ranks: &[usize]) {
    let (src, outside) = (home.join("src"), home.join("outside"));
    build(&src, &outside);
    let before = unread(listing(&outside));
    for &ranks in ranks {
        let (dst, real) = (mount.join(format!("np{ranks}")), store.join(format!("np{ranks}")));
        let job = Job::ranks(ranks).options(["-k", "64K", "-b", "16K", "--json"]);
        let first = copy(&job, &[&src], &dst);
        assert_untouched(&before, &unread(listing(&outside)), &first.outcome.told());
        assert_told(&first, &src, &real);
        // again, to be left, with other metadata, and with other targets
        let contents = src.join("");
        let again = || copy(&job, &[&contents], &dst);
        let later = SECONDS.0 + i64::try_from(ranks).unwrap();
        for change in [Change::Nothing, Change::Metadata, Change::Links] {
            (0..LINKS).for_each(|number| make(change, &src.join(format!("home/link-{number}")), later));
            set_times(&src.join("home"), SECONDS, SECONDS);
            let copied = again();
            assert_untouched(&before, &unread(listing(&outside)), &copied.outcome.told());
            assert_told(&copied, &src, &real);
        }
    }
}

#[test]
fn the_target_of_a_link_keeps_its_owner_and_times_where_a_file_system_follows_links() {
    let dir = temp();
    let (store, mount) = (dir.path().join("store"), dir.path().join("mnt"));
    fs::create_dir(&store).unwrap();
    let _mounted = need!(sshfs(&store, &mount));
    copy_links(dir.path(), (&mount, &store), &[1, 2, 4]);
}

#[test]
fn the_target_of_a_link_keeps_its_owner_and_times_behind_an_sshd_on_another_host() {
    let dir = temp();
    let (store, mount) = (dir.path().join("store"), dir.path().join("mnt"));
    fs::create_dir(&store).unwrap();
    let hosts = need!(Hosts::three());
    let _mounted = need!(hosts.sshfs(&store, &mount));
    copy_links(dir.path(), (&mount, &store), &[2]);
}
