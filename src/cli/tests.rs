//! What is understood, and what is refused.

use super::*;

fn config(args: &[&str]) -> Result<Config, clap::Error> {
    Cli::read_from([&["pcopy"], args].concat()).and_then(Cli::config)
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn dcp_flags_are_understood() {
    let config = config(&["-b", "8MB", "-k", "64MB", "-s", "-v", "--progress", "30", "a", "b", "c"]).expect("parses");
    assert_eq!(config.sources, [PathBuf::from("a"), "b".into()]);
    assert_eq!(config.destination, PathBuf::from("c"));
    assert_eq!((config.tuning.block_len, config.tuning.range_len), (8 << 20, 64 << 20));
    assert_eq!((config.tuning.direct, config.progress_s), (Direct::Always, 30));
    assert!(config.notes.is_empty());
}

#[test]
fn what_is_preserved_is_named_in_cps_words() {
    let names = |args: &[&str]| config(&[args, &["a", "b"]].concat()).expect("parses").policy.preserve.names();
    let all = ["mode", "ownership", "timestamps", "xattr", "acl", "links"];
    assert_eq!((names(&[]), names(&["-p"]), names(&["--preserve"])), (all.into(), all.into(), all.into()));
    assert_eq!(names(&["--preserve=mode,links"]), ["mode", "links"]);
    assert_eq!(names(&["--preserve=mode", "--preserve=acl"]), ["mode", "acl"]);
    assert_eq!(names(&["--no-preserve=xattr,acl,links"]), all[..3]);
    assert_eq!(names(&["--preserve", "--no-preserve=all"]), [""; 0]);
}

#[test]
fn of_the_options_for_links_the_last_one_counts() {
    let follow = |args: &[&str]| config(&[args, &["a", "b"]].concat()).expect("parses").follow;
    assert_eq!((follow(&[]), follow(&["-H"]), follow(&["-L"])), (Follow::Never, Follow::CommandLine, Follow::Always));
    assert_eq!(
        (follow(&["-LP"]), follow(&["-PH"]), follow(&["-HL", "-L"])),
        (Follow::Never, Follow::CommandLine, Follow::Always)
    );
}

#[test]
fn filters_keep_their_order() {
    let args = ["--exclude=a", "--include", "b", "--exclude-from", "c", "--exclude", "d", "x", "y"];
    let filters = config(&args).expect("parses").filters;
    let told: Vec<_> = filters.iter().map(|filter| matches!(filter, FilterArg::From(_))).collect();
    assert_eq!(told, [false, false, true, false]);
}

#[test]
fn rounding_is_said() {
    let config = config(&["--range-size", "5M", "--block-size", "5000", "a", "b"]).expect("parses");
    assert_eq!((config.tuning.range_len, config.tuning.block_len), (8 << 20, 8192));
    assert_eq!(config.notes.len(), 2);
}

#[test]
fn nonsense_is_refused() {
    for args in [
        &["a"][..],
        &[],
        &["-k", "4X", "a", "b"],
        &["-k", "0", "a", "b"],
        &["-b", "2T", "a", "b"],
        &["--threads", "0", "a", "b"],
        &["--direct=maybe", "a", "b"],
        &["--sparse=maybe", "a", "b"],
        &["--preserve=mode,nonsense", "a", "b"],
        &["--no-preserve", "a", "b"],
        &["--xattrs=some", "a", "b"],
        &["--exclude=[", "a", "b"],
        &["--no-clobber", "--update", "a", "b"],
        &["--chown=a", "--usermap=b:c", "a", "b"],
        &["--from0", "a", "b"],
        &["-q", "-v", "a", "b"],
        &["--nonsense", "a", "b"],
        &["", "b"],
        &["a", ""],
    ] {
        assert!(config(args).is_err(), "{args:?}");
    }
}
