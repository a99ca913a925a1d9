//! Which entries are copied: rules as in rsync, the first one that matches decides.

use serde::{Deserialize, Serialize};

use super::{Glob, GlobError};
use crate::types::escaped;

/// Rules in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter(Vec<Rule>);

/// `--include` or `--exclude`, with its pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    include: bool,
    glob: Glob,
    whole_path: bool,
    dirs_only: bool,
}

impl Rule {
    /// The rule for what matches `pattern`: anchored at the source with a leading slash, only for directories with a
    /// trailing one; matched with the end of the path where it holds another slash or `**`, else with the name alone.
    /// `dir/***` is the directory and all that is in it.
    ///
    /// # Errors
    /// A pattern that is none.
    pub fn new(include: bool, pattern: &[u8]) -> Result<Self, GlobError> {
        let (pattern, and_below) = match pattern.strip_suffix(b"/***") {
            Some(dir) => (dir, true),
            None => (pattern, false),
        };
        let (pattern, dirs_only) = match pattern.strip_suffix(b"/") {
            Some(dir) => (dir, true),
            None => (pattern, false),
        };
        let (pattern, anchored) = match pattern.strip_prefix(b"/") {
            Some(rest) => (rest, true),
            None => (pattern, false),
        };
        let whole_path = anchored || and_below || pattern.contains(&b'/') || pattern.windows(2).any(|two| two == b"**");
        let glob = if whole_path { Glob::path(pattern, anchored, and_below)? } else { Glob::name(pattern)? };
        Ok(Self { include, glob, whole_path, dirs_only })
    }

    /// The rules of a file as `--exclude-from` takes it: a pattern a line, `+ ` before one that includes, `- ` before
    /// one that excludes; blank lines and those that begin with `#` or `;` say nothing.
    ///
    /// # Errors
    /// The number of the line, from 1, and what is wrong with it.
    pub fn from_lines(text: &[u8]) -> Result<Vec<Self>, (usize, GlobError)> {
        let lines = text.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let patterns = (1..).zip(lines).filter(|(_, line)| !matches!(line, [] | [b'#' | b';', ..]));
        let rules = patterns.map(|(number, line)| {
            let (include, pattern) = match line {
                [b'+', b' ', pattern @ ..] => (true, pattern),
                [b'-', b' ', pattern @ ..] => (false, pattern),
                pattern => (false, pattern),
            };
            Self::new(include, pattern).map_err(|err| (number, err))
        });
        rules.collect()
    }

    fn matches(&self, path: &[u8], name: &[u8], is_dir: bool) -> bool {
        (is_dir || !self.dirs_only) && self.glob.matches(if self.whole_path { path } else { name })
    }
}

impl Filter {
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    /// Whether there is anything to ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is short enough to be sent to other ranks.
    pub fn travels(&self) -> bool {
        const MAX_LEN: usize = 1 << 20;
        self.0.iter().map(|rule| rule.glob.as_str().len() + 16).sum::<usize>() < MAX_LEN
    }

    /// What tells it from another filter.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for rule in &self.0 {
            hasher.update(&[rule.include, rule.whole_path, rule.dirs_only].map(u8::from));
            hasher.update(rule.glob.as_str().as_bytes()).update(b"\0");
        }
        hasher.finalize()
    }

    /// Whether an entry is left out. `path` is the one below its source, with a slash before it.
    pub fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        debug_assert!(path.starts_with(b"/"), "{}", escaped(path));
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        self.0.iter().find(|rule| rule.matches(path, name, is_dir)).is_some_and(|rule| !rule.include)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(rules: &[(bool, &str)], path: &str) -> bool {
        let rules = rules.iter().map(|(include, pattern)| Rule::new(*include, pattern.as_bytes()).expect(pattern));
        let is_dir = path.ends_with('/');
        Filter::new(rules.collect()).excludes(path.trim_end_matches('/').as_bytes(), is_dir)
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let keep_c = [(true, "*.c"), (false, "*")];
        assert!(!excludes(&keep_c, "/a.c") && excludes(&keep_c, "/a.o") && excludes(&keep_c, "/dir/"));
        let with_dirs = [(true, "*/"), (true, "*.c"), (false, "*")];
        assert!(!excludes(&with_dirs, "/dir/") && excludes(&with_dirs, "/dir"));
        assert!(!excludes(&[], "/a"));
    }

    #[test]
    fn slashes_anchor_and_tell_directories() {
        assert!(
            excludes(&[(false, ".snapshot/")], "/a/b/.snapshot/") && !excludes(&[(false, ".snapshot/")], "/.snapshot")
        );
        assert!(excludes(&[(false, "/a")], "/a") && !excludes(&[(false, "/a")], "/b/a"));
        assert!(excludes(&[(false, "a/b")], "/x/a/b") && !excludes(&[(false, "a/b")], "/x/a/c/b"));
        assert!(excludes(&[(false, "a/***")], "/x/a/") && excludes(&[(false, "a/***")], "/x/a/c/b"));
        assert!(excludes(&[(false, "/a/**/z")], "/a/b/c/z") && !excludes(&[(false, "/a/*/z")], "/a/b/c/z"));
    }

    #[test]
    fn a_file_of_rules_tells_its_bad_line() {
        let rules = Rule::from_lines(b"# c\n; c\n\n+ keep\n- *.o\r\nplain\n").expect("good lines");
        assert_eq!(rules.iter().map(|rule| rule.include).collect::<Vec<_>>(), [true, false, false]);
        assert!(Filter::new(rules).excludes(b"/x.o", false));
        assert_eq!(Rule::from_lines(b"a\n\n- [\n").map(drop).map_err(|(line, _)| line), Err(3));
    }
}
