//! Tries an image store by hand:
//! `images ROOT load|import FILE|- [NAME]`, `images ROOT ls`, `images ROOT files NAME`, `images ROOT rm NAME`,
//! `images ROOT scratch FILE`, `images ROOT save NAME FILE`, `images ROOT check`, `images ROOT collect`,
//! `images ROOT compare FILE ROUNDS` (import by workers and in the process, in turn). With the feature `failpoints` it dies
//! where `BULKHEAD_FAILPOINT` says.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use bulkhead_image::limits::Limits;
use bulkhead_image::{Converter, ImageStore, ImportOptions, Scratch};

fn main() -> anyhow::Result<()> {
    bulkhead_image::serve_if_converter();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (root, rest) = arguments.split_first().context("expected a folder")?;
    if let ["scratch", disk] = rest {
        let began = Instant::now();
        Scratch::prepare(&Path::new(root).join("blank"), Path::new(disk), 20 << 30)?;
        println!("scratch disk in {:?}", began.elapsed());
        return Ok(());
    }
    if let ["compare", file, rounds] = rest {
        return compare(Path::new(root), file, rounds.parse()?);
    }
    let store = ImageStore::open(Path::new(root))?;
    let began = Instant::now();
    match rest {
        ["load", file] => println!("{:?}", store.load(input(file)?, &mut |event| println!("{event:?}"))?),
        ["import", file, name @ ..] => {
            let reference = name.first().map(|name| name.parse()).transpose()?;
            println!("{}", store.import(input(file)?, &ImportOptions { reference, ..ImportOptions::default() })?);
        }
        ["ls"] => store.list().iter().for_each(|image| println!("{image:?}")),
        ["files", name] => {
            for file in store.layer_files(&store.resolve(name)?)? {
                println!("{} {}", file.diff_id, file.path.display());
            }
        }
        ["save", name, file] => store.saving(&[(*name).to_owned()])?.write(&mut File::create(file)?)?,
        ["check"] => println!("{:?}", store.check(true)?),
        ["collect"] => println!("{:?}", store.collect(&|_| Vec::new())?),
        ["rm", name] => println!("{:?}", store.remove(name, false, &|_| Vec::new())?),
        _ => bail!("expected load, import, ls, files, rm, save, check, collect or scratch"),
    }
    eprintln!("{:?}", began.elapsed());
    Ok(())
}

fn compare(root: &Path, file: &str, rounds: usize) -> anyhow::Result<()> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (converter, times) in [Converter::InProcess, Converter::Workers].into_iter().zip(&mut times) {
            let store = ImageStore::with_converter(root, Limits::default(), converter)?;
            let began = Instant::now();
            let id = store.import(input(file)?, &ImportOptions::default())?;
            times.push(began.elapsed());
            store.remove(id.as_str(), true, &|_| Vec::new())?;
        }
    }
    for (what, times) in ["in the process", "by workers"].into_iter().zip(&mut times) {
        times.sort_unstable();
        println!("{what}: median {:?}, least {:?}", times[times.len() / 2], times[0]);
    }
    Ok(())
}

fn input(file: &str) -> anyhow::Result<Box<dyn Read>> {
    Ok(if file == "-" { Box::new(stdin()) } else { Box::new(File::open(file).with_context(|| file.to_owned())?) })
}
