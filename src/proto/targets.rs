//! Where in the copy the sources of a job meet.

use std::collections::HashMap;

use super::Job;
use crate::types::RelPath;

/// The places that a job's sources are copied to, to be asked often: a job may have thousands of sources.
#[derive(Default)]
pub struct Targets {
    /// Sources whose contents go straight into the copy's root.
    at_root: usize,
    /// Sources that are copied to a name in the copy's root, or below it, counted by that name.
    named: HashMap<Vec<u8>, usize>,
}

impl Targets {
    pub fn new(job: &Job) -> Self {
        let mut targets = Self::default();
        for source in &job.sources {
            match source.target.first_name() {
                None => targets.at_root += 1,
                Some(name) => *targets.named.entry(name.to_vec()).or_default() += 1,
            }
        }
        targets
    }

    /// How many sources have entries in this directory of the copy, or below it. A source whose place is deeper than one name
    /// counts for all directories below the first name; no command line leads to such a place.
    pub fn meeting_at(&self, dir: &RelPath) -> usize {
        let named = match dir.first_name() {
            None => self.named.values().sum(),
            Some(name) => self.named.get(name).copied().unwrap_or(0),
        };
        self.at_root + named
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Source;
    use crate::proto::tests::job_of;

    #[test]
    fn sources_meet_where_one_of_them_is_the_root_or_has_the_same_name() {
        let path = |text: &str| RelPath::new(text.into()).expect("a path");
        let meeting = |targets: &[&str], dir: &str| {
            let mut job = job_of(None);
            let source = job.sources[0].clone();
            job.sources = targets.iter().map(|target| Source { target: path(target), ..source.clone() }).collect();
            Targets::new(&job).meeting_at(&path(dir))
        };
        assert_eq!((meeting(&[""], ""), meeting(&[""], "a/b")), (1, 1));
        assert_eq!((meeting(&["a", "b"], ""), meeting(&["a", "b"], "a"), meeting(&["a", "b"], "a/c")), (2, 1, 1));
        assert_eq!((meeting(&["", "b"], "b/c"), meeting(&["", "b"], "c"), meeting(&["", "", "b"], "c")), (2, 1, 2));
    }
}
