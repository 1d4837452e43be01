//! Finds kernel modules and the order to load them in, from what each module says of itself. A package that is only
//! unpacked has no `modules.dep`: nothing has run depmod over it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::compression;

/// A module as it goes into the initramfs: unpacked, its signature still behind it.
#[derive(Debug)]
pub struct Module {
    /// As `lsmod` prints it, with underscores.
    pub name: String,
    /// The ELF file.
    pub bytes: Vec<u8>,
    /// Loaded only in a guest that needs it.
    pub later: bool,
}

/// A name in the list of wanted modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    name: String,
    /// Not every kernel has it.
    optional: bool,
    /// Loaded only in a guest that needs it.
    later: bool,
}

/// Reads the list: one name a line, `?` behind one that a kernel may lack, `!` behind one that is loaded later, `#` begins a comment.
pub fn parse_list(text: &str) -> Vec<Wanted> {
    let names = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    names
        .filter(|name| !name.is_empty())
        .map(|name| Wanted {
            name: canonical(name.trim_end_matches(['?', '!'])),
            optional: name.contains('?'),
            later: name.ends_with('!'),
        })
        .collect()
}

/// The wanted modules and all they depend on, each after what it needs; what the kernel has built in is left out.
///
/// # Errors
/// When a wanted module that is not optional, or a dependency, is neither there nor built in; when dependencies are a ring.
pub fn resolve(folder: &Path, wanted: &[Wanted]) -> Result<Vec<Module>> {
    let mut resolver = Resolver {
        files: index(folder)?,
        built_in: built_in(folder)?,
        loaded: BTreeSet::new(),
        order: Vec::new(),
        later: false,
    };
    for module in wanted {
        let missing = !resolver.files.contains_key(&module.name) && !resolver.built_in.contains(&module.name);
        if missing && module.optional {
            continue;
        }
        ensure!(module.later || !resolver.later, "module {} comes behind one that is loaded later", module.name);
        resolver.later = module.later;
        resolver.visit(&module.name, &mut Vec::new())?;
    }
    Ok(resolver.order)
}

struct Resolver {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    loaded: BTreeSet<String>,
    order: Vec<Module>,
    /// What is found now is loaded later.
    later: bool,
}

impl Resolver {
    fn visit(&mut self, name: &str, path_here: &mut Vec<String>) -> Result<()> {
        if self.loaded.contains(name) || self.built_in.contains(name) {
            return Ok(());
        }
        ensure!(
            !path_here.iter().any(|above| above == name),
            "modules depend in a ring: {} {name}",
            path_here.join(" ")
        );
        let Some(file) = self.files.get(name) else {
            bail!("the kernel has no module {name} (needed by: {})", path_here.join(" "));
        };
        let bytes = read_module(file)?;
        let info = ModuleInfo::read(&bytes).with_context(|| format!("in {}", file.display()))?;
        path_here.push(name.to_owned());
        for dependency in &info.depends {
            self.visit(dependency, path_here)?;
        }
        // A soft dependency may be an alias for something that is built in, so it is followed only where a file has its name.
        for dependency in &info.soft_before {
            if self.files.contains_key(dependency) {
                self.visit(dependency, path_here)?;
            }
        }
        path_here.pop();
        self.loaded.insert(name.to_owned());
        self.order.push(Module { name: name.to_owned(), bytes, later: self.later });
        Ok(())
    }
}

/// What the `.modinfo` section says that matters for the order.
#[derive(Debug, Default, PartialEq, Eq)]
struct ModuleInfo {
    depends: Vec<String>,
    soft_before: Vec<String>,
}

impl ModuleInfo {
    fn read(module: &[u8]) -> Result<Self> {
        let section =
            elf_section(module, b".modinfo").context("no kernel module: an ELF file with a .modinfo section")?;
        let mut info = Self::default();
        for entry in section.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok()) {
            match entry.split_once('=') {
                Some(("depends", list)) => {
                    info.depends = list.split(',').filter(|name| !name.is_empty()).map(canonical).collect();
                }
                Some(("softdep", list)) => info.soft_before.extend(soft_before(list)),
                _ => {}
            }
        }
        Ok(info)
    }
}

/// The names behind `pre:` in a softdep entry, `pre: a b post: c`.
fn soft_before(list: &str) -> Vec<String> {
    let mut before = false;
    let mut names = Vec::new();
    for word in list.split_ascii_whitespace() {
        match word {
            "pre:" => before = true,
            "post:" => before = false,
            name if before => names.push(canonical(name)),
            _ => {}
        }
    }
    names
}

/// The content of a section of a little-endian ELF64 file. Source: ELF-64 Object File Format 1.5, "Sections".
fn elf_section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let number = |offset: usize, width: usize| -> Option<usize> {
        let mut bytes = [0; 8];
        bytes.get_mut(..width)?.copy_from_slice(elf.get(offset..offset.checked_add(width)?)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, entry_size, count, names_index) = (number(40, 8)?, number(58, 2)?, number(60, 2)?, number(62, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(entry_size)?);
    let content = |header: usize| -> Option<&'a [u8]> {
        let begin = number(header.checked_add(24)?, 8)?;
        elf.get(begin..begin.checked_add(number(header + 32, 8)?)?)
    };
    let names = content(header(names_index)?)?;
    (0..count).filter_map(header).find_map(|header| {
        let rest = names.get(number(header, 4)?..)?;
        let this = rest.split(|byte| *byte == 0).next()?;
        (this == name).then(|| content(header)).flatten()
    })
}

fn read_module(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    if file.extension().is_some_and(|extension| extension == "ko") {
        return Ok(bytes);
    }
    compression::unpack(&bytes).with_context(|| format!("cannot unpack {}", file.display()))
}

/// Every module file below the folder by its name.
fn index(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut pending = vec![folder.to_path_buf()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            // `build` and `source` of an installed kernel are links out of the folder.
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else if let Some((name, "" | ".xz" | ".zst" | ".gz")) =
                entry.file_name().to_str().and_then(|name| name.split_once(".ko"))
            {
                files.insert(canonical(name), entry.path());
            }
        }
    }
    Ok(files)
}

fn built_in(folder: &Path) -> Result<BTreeSet<String>> {
    let list = folder.join("modules.builtin");
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let stems = text.lines().filter_map(|line| Path::new(line).file_stem()?.to_str());
    Ok(stems.map(canonical).collect())
}

/// The kernel's own spelling: file names have dashes where module names have underscores.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest ELF64 file with a `.modinfo` section.
    fn module(info: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let table = 64 + info.len() + names.len();
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        elf[58] = 64;
        elf[60] = 3;
        elf[62] = 2;
        elf.extend(info);
        elf.extend(names);
        for (name, begin, size) in [(0_u32, 0, 0), (1, 64, info.len()), (10, 64 + info.len(), names.len())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&(begin as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            elf.extend(header);
        }
        elf
    }

    fn kernel(modules: &[(&str, &str)], built_in: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("kernel/fs")).unwrap();
        fs::write(folder.path().join("modules.builtin"), built_in).unwrap();
        for (name, info) in modules {
            fs::write(folder.path().join("kernel/fs").join(name), module(info.as_bytes())).unwrap();
        }
        folder
    }

    fn order(folder: &tempfile::TempDir, list: &str) -> Result<Vec<String>> {
        let modules = resolve(folder.path(), &parse_list(list))?;
        Ok(modules.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let folder = kernel(
            &[
                ("a-net.ko", "license=GPL\0depends=b,c\0"),
                ("b.ko", "depends=c\0"),
                ("c.ko", "depends=\0softdep=pre: d built crc post: e\0"),
                ("d.ko", "depends=\0"),
                ("e.ko", "depends=\0"),
            ],
            "kernel/lib/crc.ko\n",
        );
        assert_eq!(order(&folder, "a_net # first\n\nb\nd\n").unwrap(), ["d", "c", "b", "a_net"]);
    }

    #[test]
    fn what_is_loaded_later_takes_only_what_nothing_else_needs_along() {
        let folder =
            kernel(&[("a.ko", "depends=b\0"), ("b.ko", "depends=\0"), ("v.ko", "depends=b,w\0"), ("w.ko", "")], "");
        let modules = resolve(folder.path(), &parse_list("a\nnone?!\nv?!\n")).unwrap();
        let order: Vec<(&str, bool)> = modules.iter().map(|module| (module.name.as_str(), module.later)).collect();
        assert_eq!(order, [("b", false), ("a", false), ("w", true), ("v", true)]);
        assert!(resolve(folder.path(), &parse_list("v!\na\n")).is_err());
    }

    #[test]
    fn what_is_built_in_or_optional_may_lack() {
        let folder = kernel(&[("a.ko", "depends=ext4\0")], "kernel/fs/ext4/ext4.ko\n");
        assert_eq!(order(&folder, "ext4\nlz5?\na\n").unwrap(), ["a"]);
        let error = order(&folder, "lz5\n").unwrap_err().to_string();
        assert!(error.contains("no module lz5"), "{error}");
    }

    #[test]
    fn a_ring_and_a_file_that_is_no_module_are_errors() {
        let folder = kernel(&[("a.ko", "depends=b\0"), ("b.ko", "depends=a\0")], "");
        assert!(order(&folder, "a\n").unwrap_err().to_string().contains("ring"));
        fs::write(folder.path().join("c.ko"), b"text").unwrap();
        assert!(order(&folder, "c\n").is_err());
    }
}
