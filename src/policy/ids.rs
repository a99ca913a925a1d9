//! Owners of the source mapped to those of the copy. Names are looked up by who asks, each id once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::{From, Glob, GlobError, OwnerMap};

/// A map of users, or of groups, shared by a rank's threads.
pub struct IdMap {
    rules: Vec<(Matcher, u32)>,
    name_of: fn(u32) -> Option<String>,
    known: Mutex<HashMap<u32, Option<u32>>>,
}

enum Matcher {
    Any,
    Ids(u32, u32),
    Named(Glob),
    Nameless,
}

impl IdMap {
    /// `name_of` looks up the name of an id.
    ///
    /// # Errors
    /// A pattern that is none.
    pub fn new(map: &OwnerMap, name_of: fn(u32) -> Option<String>) -> Result<Self, GlobError> {
        let rules = map.0.iter().map(|rule| {
            let matcher = match &rule.from {
                From::Any => Matcher::Any,
                From::Ids(low, high) => Matcher::Ids(*low, *high),
                From::Named(pattern) => Matcher::Named(Glob::name(pattern.as_bytes())?),
                From::Nameless => Matcher::Nameless,
            };
            Ok((matcher, rule.to))
        });
        Ok(Self { rules: rules.collect::<Result<_, GlobError>>()?, name_of, known: Mutex::default() })
    }

    /// What the id becomes, or `None` where no rule is for it.
    pub fn get(&self, id: u32) -> Option<u32> {
        if self.rules.is_empty() {
            return None;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known.entry(id).or_insert_with(|| {
            let name = (self.name_of)(id);
            let matches = |matcher: &Matcher| match matcher {
                Matcher::Any => true,
                Matcher::Ids(low, high) => (*low..=*high).contains(&id),
                Matcher::Named(glob) => name.as_ref().is_some_and(|name| glob.matches(name.as_bytes())),
                Matcher::Nameless => name.is_none(),
            };
            self.rules.iter().find(|(matcher, _)| matches(matcher)).map(|(_, to)| *to)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let map = OwnerMap::parse("5:50,a*:60,:70,0-10:80", |to| to.parse().map_err(|_| String::new()));
        let name_of = |id| (id < 8).then(|| ["abe", "bob"][id as usize % 2].to_string());
        let map = IdMap::new(&map.expect("good rules"), name_of).expect("good patterns");
        assert_eq!([5, 4, 3, 9, 99].map(|id| map.get(id)), [Some(50), Some(60), Some(80), Some(70), Some(70)]);
        assert_eq!(IdMap::new(&OwnerMap::default(), name_of).expect("no patterns").get(5), None);
    }
}
