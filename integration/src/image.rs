//! The initramfs of a guest: a base per kernel, made once, and the files of one run behind it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio::Archive;
use crate::error::{Context, Result};
use crate::kernel::Kernel;
use crate::packages::on_path;
use crate::process::output;
use crate::progress::step;
use crate::userland::Userland;

/// A file or a directory that a run needs in its guest.
#[derive(Debug, Clone)]
pub struct GuestFile {
    /// What to copy, on the host. A single program loses its debug information on the way.
    pub host: PathBuf,
    /// Where to, an absolute path.
    pub guest: PathBuf,
}

/// Makes the kernel's base image when it is missing or older than what it is made of.
///
/// # Errors
/// A file cannot be read or written.
pub fn ensure_base(kernel: &Kernel, userland: &Userland) -> Result<()> {
    let base = kernel.base_image();
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let stamp = userland.stamp();
    let newest = time(&stamp).path("find", &stamp)?;
    if time(&base).is_ok_and(|made| made > newest) {
        return Ok(());
    }
    step(&format!("making the image of Linux {}", kernel.release()), || {
        let partial = base.with_extension("partial");
        let file = File::create(&partial).path("make", &partial)?;
        let write = || {
            let mut archive = Archive::new(BufWriter::new(file));
            archive.tree(Path::new(""), userland.root())?;
            archive.tree(Path::new(""), &kernel.modules())?;
            // The kernel opens it before there is a /dev.
            archive.character_device(Path::new("dev/console"), 5, 1)?;
            archive.finish()
        };
        write().path("write", &partial)?;
        fs::rename(&partial, &base).path("finish", &base)
    })
}

/// Writes the image of one run: the base, then `init` as the first process, `job`, and the run's files.
///
/// # Errors
/// A file cannot be read or written.
pub fn write_run(image: &Path, kernel: &Kernel, init: &Path, job: &[u8], files: &[GuestFile]) -> Result<()> {
    fs::copy(kernel.base_image(), image).path("copy the base image to", image)?;
    let file = File::options().append(true).open(image).path("open", image)?;
    let mut archive = Archive::new(BufWriter::new(file));
    let mut made = BTreeSet::new();
    let init = GuestFile {
        host: init.to_owned(),
        guest: "/init".into(),
    };
    for GuestFile { host, guest } in std::iter::once(&init).chain(files) {
        let guest = Userland::resolve(guest);
        let parents: Vec<_> = guest
            .ancestors()
            .skip(1)
            .filter(|path| *path != Path::new(""))
            .collect();
        for parent in parents.into_iter().rev() {
            if made.insert(parent.to_owned()) {
                archive.directory(parent).path("write", image)?;
            }
        }
        // A link on the command line stands for what it points to.
        let host = fs::canonicalize(host).path("copy into the guest", host)?;
        if on_path("strip") && is_elf(&host)? {
            let stripped = strip(&host, image)?;
            archive.file(&guest, 0o755, &stripped).path("write", image)?;
        } else {
            archive.tree(&guest, &host).path("copy into the guest", &host)?;
        }
    }
    archive
        .file(Path::new(crate::job::PATH.trim_start_matches('/')), 0o644, job)
        .path("write", image)?;
    archive
        .finish()
        .and_then(|mut file| file.flush())
        .path("write", image)
}

fn is_elf(path: &Path) -> Result<bool> {
    let mut magic = Vec::new();
    if path.is_file() {
        File::open(path)
            .and_then(|file| file.take(4).read_to_end(&mut magic))
            .path("read", path)?;
    }
    Ok(magic == b"\x7fELF")
}

fn strip(program: &Path, image: &Path) -> Result<Vec<u8>> {
    let stripped = image.with_extension("stripped");
    output(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
    let bytes = fs::read(&stripped).path("read", &stripped)?;
    fs::remove_file(&stripped).path("remove", &stripped)?;
    Ok(bytes)
}
