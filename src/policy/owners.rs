//! Other owners for the copy, as rsync's `--usermap` and `--groupmap` have them.

use serde::{Deserialize, Serialize};

/// Rules from ids of the source to ids of the copy; the first one that matches decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerMap(pub Vec<OwnerRule>);

/// What is mapped, and the id that it gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRule {
    pub from: From,
    pub to: u32,
}

/// Which ids of the source a rule is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum From {
    Any,
    /// Both ends belong to it.
    Ids(u32, u32),
    /// Ids whose names match the pattern.
    Named(String),
    /// Ids that have no name.
    Nameless,
}

impl OwnerMap {
    /// The rules of an option's value: `FROM:TO,...`. `id_of` looks a name up.
    ///
    /// # Errors
    /// What is wrong, for the command line.
    pub fn parse(text: &str, id_of: impl Fn(&str) -> Result<u32, String>) -> Result<Self, String> {
        let rules = text.split(',').map(|rule| {
            let (from, to) = rule.split_once(':').ok_or_else(|| format!("{rule}: write FROM:TO"))?;
            Ok(OwnerRule { from: From::parse(from)?, to: id_of(to)? })
        });
        rules.collect::<Result<_, String>>().map(Self)
    }

    /// The map that gives everything one owner.
    pub fn everything_to(id: u32) -> Self {
        Self(vec![OwnerRule { from: From::Any, to: id }])
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From {
    fn parse(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u32>().map_err(|_| format!("{text}: not an id"));
        Ok(match text {
            "*" => Self::Any,
            "" => Self::Nameless,
            _ if !text.starts_with(|c: char| c.is_ascii_digit()) => {
                super::Glob::name(text.as_bytes()).map_err(|err| err.to_string())?;
                Self::Named(text.into())
            }
            _ => {
                let (low, high) = text.split_once('-').unwrap_or((text, text));
                let (low, high) = (number(low)?, number(high)?);
                if low > high {
                    return Err(format!("{text}: the range ends before it begins"));
                }
                Self::Ids(low, high)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_parse_as_in_rsync() {
        let id_of = |name: &str| name.parse().map_err(|_| format!("{name}: no such user"));
        let map = OwnerMap::parse("0-99:7,bob*:8,:9,5:1,*:2", id_of).expect("good rules");
        let rules: Vec<_> = map.0.into_iter().map(|rule| (rule.from, rule.to)).collect();
        let named = From::Named("bob*".into());
        assert_eq!(
            rules,
            [(From::Ids(0, 99), 7), (named, 8), (From::Nameless, 9), (From::Ids(5, 5), 1), (From::Any, 2)]
        );
        for bad in ["", "a", "a:nobody-here", "9-1:2", "1x:2", "a:1,,", "[:1"] {
            assert!(OwnerMap::parse(bad, id_of).is_err(), "{bad}");
        }
    }
}
