//! The judges of refusals, of summaries and of what must not be touched object where they should.

use std::fs;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::support::launch::{Job, Outcome};
use crate::support::listing::{assert_untouched, listing, unread};
use crate::support::told;
use crate::support::tree::{self, chmod, noise_file, set_times, temp, write};

/// What a program would have come to that prints this.
fn outcome(stdout: &str, stderr: &str, code: i32) -> Outcome {
    let dir = temp();
    let script = dir.path().join("script");
    write(&dir.path().join("out"), stdout.as_bytes());
    write(&dir.path().join("err"), stderr.as_bytes());
    write(&script, format!("#!/bin/sh\ncd '{}'; cat out; cat err >&2; exit {code}\n", dir.path().display()).as_bytes());
    chmod(&script, 0o755);
    Job::alone().program(&script).run([] as [&str; 0])
}

fn objects(judge: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(judge)).is_err()
}

#[test]
fn a_refusal_is_one_message_and_exit_code_2_and_nothing_else() {
    let refused = outcome("", "pcopy: no\nmore words\n", 2);
    assert_eq!(refused.assert_refused(), "pcopy: no");
    assert_eq!(outcome("", "error: unknown\n\nUsage: pcopy\n", 2).assert_refused(), "error: unknown");
    for wrong in [
        outcome("", "pcopy: no\n", 1),
        outcome("", "pcopy: no\npcopy: no\n", 2),
        outcome("", "words\n", 2),
        outcome("copied\n", "pcopy: no\n", 2),
    ] {
        assert!(objects(|| assert_ne!(wrong.assert_refused(), "")), "{}", wrong.told());
    }
}

#[test]
fn counts_are_read_from_both_summaries() {
    let text = "Items:       30 (7/s)\nKept:        6 entries\nNot kept:    ownership: 3 entries\n             xattr: 12\nManifest:    mode 5\n";
    let copied = outcome(text, "", 0);
    assert_eq!((told::count(&copied, "Kept"), told::count(&copied, "Excluded")), (Some(6), None));
    let kinds = [("ownership".to_owned(), 3), ("xattr".to_owned(), 12)].into();
    assert_eq!(told::unkept_in_summary(&copied), kinds);
    assert!(told::unkept_in_summary(&outcome("Kept: 2\n", "", 0)).is_empty());
    for wrong in ["Not kept:\n  mode 1\n  mode 2\n", "Not kept:\n  mode\n"] {
        assert!(objects(|| drop(told::unkept_in_summary(&outcome(wrong, "", 0)))), "{wrong}");
    }
    let copied = outcome("{\"unkept_kinds\":{\"ownership\":3,\"xattr\":12}}\n", "", 0);
    assert_eq!(told::unkept_in_json(&copied), kinds);
    for wrong in ["{}", "{\"unkept_kinds\":{}} and more"] {
        assert!(objects(|| drop(told::unkept_in_json(&outcome(wrong, "", 0)))), "{wrong}");
    }
}

#[test]
fn whatever_is_touched_shows_and_looking_touches_nothing() {
    let dir = temp();
    let root = dir.path().join("root");
    noise_file(&root.join("d/f"), 100);
    symlink("d", root.join("link")).unwrap();
    tree::age(&root);
    let before = listing(&root);
    assert_eq!(before.len(), 4);
    assert_untouched(&before, &listing(&root), "looked at twice");
    type Touch = fn(&Path);
    let touches: [(Touch, bool); 7] = [
        (|root| assert_eq!(fs::read_dir(root.join("d")).unwrap().count(), 1), true),
        (|root| drop(fs::read(root.join("d/f")).unwrap()), true),
        (|root| chmod(&root.join("d/f"), 0o600), false),
        (|root| set_times(&root.join("link"), (5, 5), (5, 5)), false),
        (|root| noise_file(&root.join("new"), 1), false),
        (|root| fs::remove_file(root.join("link")).unwrap(), false),
        (|root| fs::rename(root.join("d"), root.join("e")).unwrap(), false),
    ];
    for (number, (touch, only_read)) in touches.into_iter().enumerate() {
        // Times of access change where they are not newer than the others.
        tree::age(&root);
        let before = listing(&root);
        touch(&root);
        let after = listing(&root);
        assert!(objects(|| assert_untouched(&before, &after, "touched")), "touch {number} does not show");
        assert_eq!(objects(|| assert_untouched(&unread(before), &unread(after), "touched")), !only_read, "{number}");
    }
}
