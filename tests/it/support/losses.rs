//! What a copy of the hard tree has lost, counted by aspect: for a table that people read.

use std::collections::BTreeMap;
use std::path::Path;

use super::hard_tree::HardTree;
use super::oracle::{self, Aspects, BLOCKS_SLACK, Kind, Node};

/// The columns of the table: how many entries lost this. The last four are entries that are not there at all.
pub const COLUMNS: [&str; 14] = [
    "content",
    "mode",
    "owner",
    "mtime",
    "atime",
    "xattrs",
    "ACL",
    "capability",
    "hard links",
    "holes",
    "special files",
    "names",
    "deep path",
    "entries",
];

/// How many entries, by column.
pub type Counts = BTreeMap<&'static str, usize>;

/// How many entries have what a column counts.
pub fn at_stake(tree: &HardTree) -> Counts {
    let mut counts = Counts::new();
    for (path, node) in &tree.before {
        let count = &mut |column, has: bool| *counts.entry(column).or_default() += usize::from(has);
        ["mode", "owner", "mtime", "atime"].into_iter().for_each(|column| count(column, true));
        count("content", node.kind == Kind::File);
        for column in ["xattrs", "ACL", "capability"] {
            count(column, !attributes(node, column).is_empty());
        }
        count("hard links", node.first_name != *path);
        count("holes", node.allocated + BLOCKS_SLACK < node.size);
        ["special files", "names", "deep path", "entries"].into_iter().for_each(|c| count(c, c == place(path, node)));
    }
    counts
}

/// What the copy at `dst` lost. It must not have been read yet.
pub fn losses(tree: &HardTree, dst: &Path) -> Counts {
    let after = if dst.is_dir() { oracle::walk_settled(dst) } else { oracle::Tree::new() };
    let mut counts = Counts::new();
    for (path, node) in &tree.before {
        let count = &mut |column, lost: bool| *counts.entry(column).or_default() += usize::from(lost);
        let Some(copy) = after.get(path).filter(|copy| copy.kind == node.kind) else {
            count(place(path, node), true);
            continue;
        };
        let differs = |aspects: Aspects| !oracle::node_differences(node, copy, aspects).is_empty();
        count("mode", differs(Aspects { mode: true, ..Aspects::NONE }));
        count("owner", differs(Aspects { owner: true, ..Aspects::NONE }));
        count("mtime", differs(Aspects { mtime: true, ..Aspects::NONE }));
        count("atime", differs(Aspects { atime: true, ..Aspects::NONE }));
        count("hard links", differs(Aspects { hard_links: true, ..Aspects::NONE }));
        count("holes", differs(Aspects { blocks: true, ..Aspects::NONE }));
        count("special files", differs(Aspects { device_numbers: true, ..Aspects::NONE }));
        for column in ["xattrs", "ACL", "capability"] {
            count(column, attributes(node, column) != attributes(copy, column));
        }
        let is_file = node.kind == Kind::File;
        count("content", is_file && !oracle::same_content(&tree.root, dst, path));
    }
    counts
}

/// The column that an entry counts in where it is missing.
fn place(path: &[u8], node: &Node) -> &'static str {
    match node.kind {
        _ if path.starts_with(b"deep/") => "deep path",
        _ if path.starts_with(b"names/") => "names",
        Kind::File | Kind::Dir | Kind::Symlink => "entries",
        Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => "special files",
    }
}

/// The attributes of an entry that belong to a column.
fn attributes<'a>(node: &'a Node, column: &str) -> Vec<(&'a Vec<u8>, &'a Vec<u8>)> {
    let column_of = |name: &[u8]| match name {
        b"security.capability" => "capability",
        name if name.starts_with(b"system.posix_acl_") => "ACL",
        _ => "xattrs",
    };
    node.xattrs.iter().filter(|(name, _)| column_of(name) == column).collect()
}

/// One line of the table.
pub fn line(name: &str, cells: impl Fn(&'static str) -> String, last: &str) -> String {
    let cells = COLUMNS.map(|column| format!("{:>width$}", cells(column), width = column.len().max(4)));
    format!("{name:<12} {}  {last}", cells.join("  "))
}
