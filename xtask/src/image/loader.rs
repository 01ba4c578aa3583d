//! Follows what the dynamic loader of glibc does (ld.so(8)) far enough to say which libraries a program gets, or that it
//! would not start. Asked of this machine it finds what an image needs; asked of an image it proves that all is inside.
//! The cache /etc/ld.so.cache and `$LIB` are left out: neither the images nor libtorch use them.

use std::collections::{HashSet, VecDeque};

use anyhow::{Context, Result, bail};

use super::elf::Elf;

/// Folders that the loader of Debian and Ubuntu searches last, in its order.
pub const DEFAULT_FOLDERS: [&str; 4] = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"];

/// A file system to search.
pub trait Files {
    /// The ELF file at a path; none when no ELF file is there.
    fn elf(&self, path: &str) -> Result<Option<Elf>>;
}

/// A library that a program gets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Library {
    /// The name it is needed by.
    pub name: String,
    /// Where it was found.
    pub path: String,
}

/// A file that was loaded, and by which one.
struct Object {
    path: String,
    elf: Elf,
    parent: Option<usize>,
}

/// All libraries that the ELF file at `start` gets, its interpreter first. `library_path` is LD_LIBRARY_PATH.
///
/// # Errors
/// When one is missing: names it, and the file that needs it.
pub fn libraries(files: &dyn Files, start: &str, library_path: &str) -> Result<Vec<Library>> {
    let elf = files.elf(start)?.with_context(|| format!("{start} is not an ELF file"))?;
    let mut found = Vec::new();
    let mut names = HashSet::new();
    if let Some(path) = &elf.interpreter {
        if files.elf(path)?.is_none() {
            bail!("{start} needs the loader {path}, which is missing");
        }
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        names.insert(name.clone());
        found.push(Library { name, path: path.clone() });
    }
    let mut objects = vec![Object { path: start.to_owned(), elf, parent: None }];
    let mut waiting = VecDeque::from([0]);
    while let Some(parent) = waiting.pop_front() {
        for name in objects[parent].elf.needed.clone() {
            if !names.insert(name.clone()) {
                continue;
            }
            let (path, elf) = find(files, &objects, parent, &name, library_path)?;
            names.extend(elf.soname.clone());
            found.push(Library { name, path: path.clone() });
            objects.push(Object { path, elf, parent: Some(parent) });
            waiting.push_back(objects.len() - 1);
        }
    }
    Ok(found)
}

fn find(files: &dyn Files, objects: &[Object], needer: usize, name: &str, library_path: &str) -> Result<(String, Elf)> {
    let folders = folders(objects, needer, library_path);
    for folder in &folders {
        let path = format!("{}/{name}", folder.trim_end_matches('/'));
        if let Some(elf) = files.elf(&path)? {
            return Ok((path, elf));
        }
    }
    bail!("{} needs {name}, which is in none of {}", objects[needer].path, folders.join(", "))
}

/// Where the libraries of one object are searched: RPATH of it and of those that loaded it unless it has a RUNPATH, then
/// LD_LIBRARY_PATH, then its RUNPATH, then the default folders.
fn folders(objects: &[Object], needer: usize, library_path: &str) -> Vec<String> {
    let mut folders = Vec::new();
    let own = &objects[needer];
    let mut at = own.elf.runpath.is_none().then_some(needer);
    while let Some(object) = at.map(|index| &objects[index]) {
        if object.elf.runpath.is_none() {
            folders.extend(split(object.elf.rpath.as_deref(), &object.path));
        }
        at = object.parent;
    }
    folders.extend(split(Some(library_path), &own.path));
    folders.extend(split(own.elf.runpath.as_deref(), &own.path));
    folders.extend(DEFAULT_FOLDERS.map(str::to_owned));
    folders
}

fn split(paths: Option<&str>, object: &str) -> Vec<String> {
    let origin = object.rsplit_once('/').map_or(".", |(folder, _)| folder);
    let parts = paths.unwrap_or("").split(':').filter(|path| !path.is_empty());
    parts.map(|path| path.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[derive(Default)]
    struct Tree(HashMap<String, Elf>);

    impl Tree {
        fn with(mut self, path: &str, needed: &[&str], rpath: Option<&str>, runpath: Option<&str>) -> Self {
            let needed = needed.iter().map(|name| (*name).to_owned()).collect();
            let (rpath, runpath) = (rpath.map(str::to_owned), runpath.map(str::to_owned));
            self.0.insert(path.to_owned(), Elf { needed, rpath, runpath, ..Elf::default() });
            self
        }

        fn paths(&self, library_path: &str) -> Result<Vec<String>> {
            Ok(libraries(self, "/bin/a", library_path)?.into_iter().map(|library| library.path).collect())
        }
    }

    impl Files for Tree {
        fn elf(&self, path: &str) -> Result<Option<Elf>> {
            Ok(self.0.get(path).cloned())
        }
    }

    #[test]
    fn default_folders_are_searched_in_order() {
        let tree = Tree::default().with("/bin/a", &["x", "y"], None, None).with("/usr/lib/x", &[], None, None);
        let tree = tree.with("/lib/x86_64-linux-gnu/y", &["x"], None, None).with("/usr/lib/y", &[], None, None);
        assert_eq!(tree.paths("").unwrap(), ["/usr/lib/x", "/lib/x86_64-linux-gnu/y"]);
    }

    #[test]
    fn runpath_is_for_its_own_object_only() {
        let tree = Tree::default().with("/bin/a", &["x"], None, Some("/opt")).with("/opt/x", &["y"], None, None);
        let tree = tree.with("/opt/y", &[], None, None);
        assert!(tree.paths("").unwrap_err().to_string().starts_with("/opt/x needs y"));
        assert_eq!(tree.paths("/none:/opt").unwrap(), ["/opt/x", "/opt/y"]);
    }

    #[test]
    fn rpath_is_inherited_and_knows_its_origin() {
        let tree = Tree::default().with("/bin/a", &["x"], Some("$ORIGIN/../opt"), None);
        let tree = tree.with("/bin/../opt/x", &["y"], None, None).with("/bin/../opt/y", &[], None, None);
        assert_eq!(tree.paths("").unwrap(), ["/bin/../opt/x", "/bin/../opt/y"]);
        let tree = tree.with("/bin/../opt/x", &["y"], None, Some("/none"));
        assert!(tree.paths("").is_err());
    }

    #[test]
    fn the_interpreter_counts_as_loaded() {
        let mut tree = Tree::default().with("/bin/a", &["ld.so"], None, None);
        tree.0.entry("/bin/a".into()).and_modify(|elf| elf.interpreter = Some("/lib64/ld.so".into()));
        assert!(tree.paths("").unwrap_err().to_string().contains("the loader /lib64/ld.so, which is missing"));
        let tree = tree.with("/lib64/ld.so", &[], None, None);
        assert_eq!(tree.paths("").unwrap(), ["/lib64/ld.so"]);
    }

    #[test]
    fn a_missing_library_names_who_needs_it() {
        let tree = Tree::default().with("/bin/a", &["x"], None, None).with("/lib/x", &["z"], None, None);
        assert!(tree.paths("").unwrap_err().to_string().starts_with("/lib/x needs z, which is in none of /lib/x86_64"));
    }
}
