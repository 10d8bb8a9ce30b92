//! Writes the seeds of every target below a directory: `fuzz-seeds DIRECTORY`.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let into = env::args_os().nth(1).map(PathBuf::from);
    let into = into.ok_or_else(|| io::Error::other("usage: fuzz-seeds DIRECTORY"))?;
    for (name, _) in vigil_fuzz::TARGETS {
        let dir = into.join(name);
        fs::create_dir_all(&dir)?;
        for (at, seed) in vigil_fuzz::seeds(name).iter().enumerate() {
            fs::write(dir.join(format!("seed-{at}")), seed)?;
        }
        println!("{name}");
    }
    Ok(())
}
