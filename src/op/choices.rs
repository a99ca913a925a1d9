//! What of the user's choices has to be looked up before it can be followed: users and groups, files of patterns and of
//! paths. Rank 0 does it, for all.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::refusal::{Refusal, refuse};
use crate::cli::{Config, FilterArg, Follow};
use crate::policy::{Filter, OwnerMap, Policy, Rule, RunAs, Selection, Xattrs, skipped_by_xattr_conf};
use crate::sys::{gid_of, uid_of};

/// The policy with every name looked up.
pub(super) fn policy(config: &Config) -> Result<Policy, Refusal> {
    let owners = &config.owners;
    let of_option = |option: &str, err: String| Refusal(format!("{option}: {err}"));
    let id = |option, name: &Option<String>, look_up: fn(&str) -> Result<u32, String>| {
        name.as_deref().map(look_up).transpose().map_err(|err| of_option(option, err))
    };
    let map = |option, rules: &Option<String>, look_up: fn(&str) -> Result<u32, String>| {
        let parsed = rules.as_deref().map(|rules| OwnerMap::parse(rules, look_up)).transpose();
        parsed.map(Option::unwrap_or_default).map_err(|err| of_option(option, err))
    };
    let (mut users, mut groups) =
        (map("--usermap", &owners.usermap, uid_of)?, map("--groupmap", &owners.groupmap, gid_of)?);
    if let Some(owner) = &owners.chown {
        let (user, group) = owner.split_once(':').unwrap_or((owner, ""));
        if user.is_empty() && group.is_empty() {
            return Err(of_option("--chown", format!("{owner:?}: write USER, USER:GROUP or :GROUP")));
        }
        let everything = |name: &str, look_up: fn(&str) -> Result<u32, String>| match name {
            "" => Ok(OwnerMap::default()),
            name => look_up(name).map(OwnerMap::everything_to).map_err(|err| of_option("--chown", err)),
        };
        (users, groups) = (everything(user, uid_of)?, everything(group, gid_of)?);
    }
    let (uid, gid) = (id("--uid", &owners.uid, uid_of)?, id("--gid", &owners.gid, gid_of)?);
    let xattrs = match &config.policy.xattrs {
        Xattrs::Libattr(_) => {
            Xattrs::Libattr(skipped_by_xattr_conf(&std::fs::read_to_string("/etc/xattr.conf").unwrap_or_default()))
        }
        other => other.clone(),
    };
    Ok(Policy { users, groups, xattrs, run_as: RunAs { uid, gid }, ..config.policy.clone() })
}

/// The filter of all rules, in their order.
pub(super) fn filter(config: &Config) -> Result<Filter, Refusal> {
    let mut rules = Vec::new();
    for filter in &config.filters {
        match filter {
            FilterArg::Rule(rule) => rules.push(rule.clone()),
            FilterArg::From(path) => {
                let text = read(path, "--exclude-from")?;
                match Rule::from_lines(&text) {
                    Ok(more) => rules.extend(more),
                    Err((line, err)) => return refuse(path, format_args!("--exclude-from: line {line}: {err}")),
                }
            }
        }
    }
    Ok(Filter::new(rules))
}

/// Which entries of the sources are to be copied.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    pub(super) filter: Filter,
    /// Of the one source, if not everything.
    pub(super) selection: Option<Selection>,
    pub(super) one_file_system: bool,
}

/// What is copied of the sources; `dir` is the first one's canonical path, if it is a directory and the only one.
pub(super) fn choice(config: &Config, filter: Filter, dir: Option<&Path>) -> Result<Choice, Refusal> {
    let selection = match &config.files_from {
        None => None,
        Some(list) => {
            let Some(dir) = dir else {
                return refuse(list, "--files-from takes one source, a directory that its entries are relative to");
            };
            let text = read(list, "--files-from")?;
            let sources = [dir.as_os_str().as_bytes(), config.sources[0].as_os_str().as_bytes()];
            match Selection::parse(&text, config.from0, sources) {
                Ok(selection) => Some(selection),
                Err(err) => return refuse(list, format_args!("--files-from: {err}")),
            }
        }
    };
    Ok(Choice { filter, selection, one_file_system: config.one_file_system })
}

/// Whether a symbolic link on the command line is followed.
pub(super) fn follows_arguments(config: &Config) -> bool {
    config.follow != Follow::Never
}

fn read(path: &Path, option: &str) -> Result<Vec<u8>, Refusal> {
    let mut text = Vec::new();
    let read = match path.as_os_str().as_bytes() {
        b"-" => std::io::stdin().lock().read_to_end(&mut text),
        _ => std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut text)),
    };
    match read {
        Ok(_) => Ok(text),
        Err(err) => refuse(path, format_args!("{option}: cannot read it: {err}")),
    }
}
