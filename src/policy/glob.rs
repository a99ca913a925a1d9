//! Shell patterns as rsync has them (rsync(1), PATTERN MATCHING RULES), matched as bytes: names need not be UTF-8.
//!
//! | pattern | matches |
//! |---|---|
//! | `*` | any bytes but `/` |
//! | `**` | any bytes |
//! | `?` | one byte but `/` |
//! | `[a-z]`, `[!a-z]`, `[[:digit:]]` | one byte of a set, or not of it; never `/` |
//! | `\x` | the byte `x` itself |

use std::fmt::Write;

use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::types::escaped;

/// A pattern that is ready to be matched. It travels as the expression that it was made into.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob(Regex);

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Glob {}

impl From<Glob> for String {
    fn from(glob: Glob) -> Self {
        glob.as_str().into()
    }
}

impl TryFrom<String> for Glob {
    type Error = regex::Error;

    fn try_from(expression: String) -> Result<Self, regex::Error> {
        Regex::new(&expression).map(Self)
    }
}

/// A pattern that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pattern}: not a pattern: {reason}")]
pub struct GlobError {
    pattern: String,
    reason: &'static str,
}

impl Glob {
    /// The expression that it was made into.
    pub(super) fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// For one name, or other bytes in which a slash means nothing.
    ///
    /// # Errors
    /// A set without its end, a backslash at the end.
    pub fn name(pattern: &[u8]) -> Result<Self, GlobError> {
        Self::new(pattern, "(?s-u)^", b"", "[\\x00-\\xff]*")
    }

    /// For a whole path that begins with a slash: from its start if `anchored`, else from any of its slashes on;
    /// `and_below` also for everything below what matches.
    ///
    /// # Errors
    /// As [`Glob::name`].
    pub fn path(pattern: &[u8], anchored: bool, and_below: bool) -> Result<Self, GlobError> {
        let start = if anchored { "(?s-u)^/" } else { "(?s-u)(?:^|/)" };
        let end: &[u8] = if and_below { b"(?:/.*)?" } else { b"" };
        Self::new(pattern, start, end, "[^/]*")
    }

    fn new(pattern: &[u8], start: &str, end: &[u8], star: &str) -> Result<Self, GlobError> {
        let failed = |reason| GlobError { pattern: escaped(pattern), reason };
        let mut regex = start.to_string();
        let mut rest = pattern;
        while let [first, after @ ..] = rest {
            rest = after;
            match first {
                b'*' if after.first() == Some(&b'*') => {
                    rest = &after[1..];
                    regex.push_str(".*");
                }
                b'*' => regex.push_str(star),
                b'?' => regex.push_str("[^/]"),
                b'[' => {
                    rest = push_set(after, &mut regex)
                        .ok_or_else(|| failed("a [ without its ], or [: :] without a class"))?
                }
                b'\\' => {
                    let (byte, after) = after.split_first().ok_or_else(|| failed("a \\ at the end"))?;
                    push_byte(*byte, &mut regex);
                    rest = after;
                }
                byte => push_byte(*byte, &mut regex),
            }
        }
        regex.push_str(std::str::from_utf8(end).expect("a constant"));
        regex.push('$');
        RegexBuilder::new(&regex).build().map(Self).map_err(|_| failed("a set that holds nothing, or too long"))
    }

    /// Whether all of `bytes` matches.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        self.0.is_match(bytes)
    }
}

/// The sets that have a name, `[:alpha:]`.
const CLASSES: [&str; 12] =
    ["alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "xdigit"];

fn push_byte(byte: u8, regex: &mut String) {
    write!(regex, "\\x{byte:02x}").expect("writing to memory");
}

/// Adds the set that begins after its `[`; what follows its `]`, or `None` where there is none.
fn push_set<'a>(set: &'a [u8], regex: &mut String) -> Option<&'a [u8]> {
    let (negated, mut rest) = match set {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, set),
    };
    regex.push_str(if negated { "[^/" } else { "[" });
    // a ] that comes first stands for itself
    let mut first = true;
    loop {
        match rest {
            [b']', after @ ..] if !first => {
                regex.push_str(if negated { "]" } else { "&&[^/]]" });
                return Some(after);
            }
            [b'[', b':', after @ ..] => {
                let end = after.windows(2).position(|pair| pair == b":]")?;
                let class = CLASSES.iter().find(|class| class.as_bytes() == &after[..end])?;
                write!(regex, "[:{class}:]").expect("writing to memory");
                rest = &after[end + 2..];
            }
            [b'\\', byte, after @ ..] => {
                push_byte(*byte, regex);
                rest = after;
            }
            [low, b'-', high, after @ ..] if *high != b']' => {
                // a range that is turned around holds nothing, and so is left out
                if low <= high {
                    push_byte(*low, regex);
                    regex.push('-');
                    push_byte(*high, regex);
                }
                rest = after;
            }
            [byte, after @ ..] => {
                push_byte(*byte, regex);
                rest = after;
            }
            [] => return None,
        }
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_rsync() {
        for (pattern, matching, others) in [
            ("*.o", &["a.o", ".o", "\n.o"][..], &["a.oo", "a.o.c"][..]),
            ("a?c", &["abc", "a.c"], &["ac", "abbc", "a/c"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "x", "/x"]),
            ("[!a-c]x", &["dx"], &["ax", "/x"]),
            ("[^]]", &["a"], &["]"]),
            ("[]]", &["]"], &["a"]),
            ("[[:digit:]_]", &["7", "_"], &["a", "]"]),
            ("\\*", &["*"], &["a", "\\*"]),
            ("a.b", &["a.b"], &["axb"]),
            ("gr*n", &["grün", "grn"], &["gr"]),
            ("(a|b)+", &["(a|b)+"], &["a"]),
        ] {
            let glob = Glob::name(pattern.as_bytes()).expect(pattern);
            matching.iter().for_each(|name| assert!(glob.matches(name.as_bytes()), "{pattern} {name}"));
            others.iter().for_each(|name| assert!(!glob.matches(name.as_bytes()), "{pattern} {name}"));
        }
        assert!(Glob::name(b"\xff*").expect("any bytes").matches(b"\xff\xfe"));
    }

    #[test]
    fn paths_match_from_the_start_or_from_any_name_on() {
        let matches = |pattern: &str, anchored, below, path: &str| {
            Glob::path(pattern.as_bytes(), anchored, below).expect(pattern).matches(path.as_bytes())
        };
        assert!(matches("a/*/c", true, false, "/a/b/c") && !matches("a/*/c", true, false, "/x/a/b/c"));
        assert!(matches("a/*/c", false, false, "/x/a/b/c") && !matches("a/*/c", false, false, "/xa/b/c"));
        assert!(!matches("a/*", true, false, "/a/b/c") && matches("a/**", true, false, "/a/b/c"));
        assert!(matches("**/c", false, false, "/c") && matches("**/c", false, false, "/a/b/c"));
        assert!(matches("a", false, true, "/x/a") && matches("a", false, true, "/x/a/b/c"));
        assert!(!matches("a", false, true, "/x/ab"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["[", "[a", "a[!", "[]", "a\\", "[[:nonsense:]]"] {
            assert!(Glob::name(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
