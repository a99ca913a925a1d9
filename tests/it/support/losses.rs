//! What a copy of the hard tree has lost, counted by aspect: for a table that people read.

use std::collections::BTreeMap;
use std::path::Path;

use super::hard_tree::HardTree;
use super::manifest::{Manifest, is_unkept};
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
        lost(node, copy).into_iter().for_each(|column| count(column, true));
        let is_file = node.kind == Kind::File;
        count("content", is_file && !oracle::same_content(&tree.root, dst, path));
    }
    counts
}

/// Which mark of the manifest tells of what a column counts. Access times and holes have none.
const MARKS: [(&str, &str); 8] = [
    ("mode", "mode"),
    ("owner", "ownership"),
    ("mtime", "timestamps"),
    ("xattrs", "xattr"),
    ("ACL", "acl"),
    ("capability", "xattr"),
    ("hard links", "links"),
    ("special files", "special"),
];

/// What the copy at `dst` has lost, and the manifest does not tell: one line an entry.
pub fn untold(tree: &HardTree, dst: &Path, manifest: &Manifest) -> Vec<String> {
    let after = oracle::walk_settled(dst);
    let mut found = Vec::new();
    for (path, node) in &tree.before {
        let shown = oracle::show(path);
        let Some(entry) = manifest.entries.get(path) else {
            // below a directory that could not be made nothing is looked at
            let mut above = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
            if !above.any(|dir| manifest.entries.get(dir).is_some_and(|entry| entry.get("error").is_some())) {
                found.push(format!("{shown}: not in the manifest"));
            }
            continue;
        };
        if entry.get("error").is_some() {
            continue;
        }
        let Some(copy) = after.get(path).filter(|copy| copy.kind == node.kind) else {
            if !is_unkept(entry, "special") {
                found.push(format!("{shown}: not there"));
            }
            continue;
        };
        if node.kind == Kind::File && !oracle::same_content(&tree.root, dst, path) {
            found.push(format!("{shown}: content"));
        }
        for column in lost(node, copy) {
            let mark = MARKS.iter().find(|(of, _)| *of == column);
            // the first name of a file that could not be linked is marked at its other names
            let others = tree.before.iter().filter(|(_, other)| other.first_name == node.first_name);
            let mut others = others.filter_map(|(path, _)| manifest.entries.get(path));
            let is_told = column == "hard links" && others.any(|other| is_unkept(other, "links"));
            if !is_told && mark.is_some_and(|(_, mark)| !is_unkept(entry, mark)) {
                let names = |node: &Node| {
                    let names =
                        attributes(node, column).into_iter().map(|(name, value)| (oracle::show(name), value.len()));
                    names.collect::<Vec<_>>()
                };
                found.push(format!("{shown}: {column} {:?} {:?}", names(node), names(copy)));
            }
        }
    }
    found
}

/// The columns that count what an entry of the copy has lost, but for its content.
fn lost(node: &Node, copy: &Node) -> Vec<&'static str> {
    let aspects = [
        ("mode", Aspects { mode: true, ..Aspects::NONE }),
        ("owner", Aspects { owner: true, ..Aspects::NONE }),
        ("mtime", Aspects { mtime: true, ..Aspects::NONE }),
        ("atime", Aspects { atime: true, ..Aspects::NONE }),
        ("hard links", Aspects { hard_links: true, ..Aspects::NONE }),
        ("holes", Aspects { blocks: true, ..Aspects::NONE }),
        ("special files", Aspects { device_numbers: true, ..Aspects::NONE }),
    ];
    let differing = aspects.into_iter().filter(|(_, aspect)| !oracle::node_differences(node, copy, *aspect).is_empty());
    let columns = ["xattrs", "ACL", "capability"].into_iter();
    let attributes = columns.filter(|column| attributes(node, column) != attributes(copy, column));
    differing.map(|(column, _)| column).chain(attributes).collect()
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
