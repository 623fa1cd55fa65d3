//! Writes cpio archives in the "newc" format, which the kernel unpacks as its initramfs.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written. Every entry belongs to root; paths are relative to the root directory.
pub(crate) struct Archive<W> {
    to: W,
    written: usize,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(to: W) -> Self {
        Self {
            to,
            written: 0,
            inode: 1,
        }
    }

    pub(crate) fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    pub(crate) fn file(&mut self, path: &Path, permissions: u32, contents: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | (permissions & 0o7777), (0, 0), contents)
    }

    pub(crate) fn symlink(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_os_str().as_bytes())
    }

    pub(crate) fn character_device(&mut self, path: &Path, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Adds what is at `from`, and all that is below it, as `path`. Sockets and the like are left out.
    pub(crate) fn tree(&mut self, path: &Path, from: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(from)?;
        let kind = metadata.file_type();
        if kind.is_symlink() {
            return self.symlink(path, &fs::read_link(from)?);
        }
        if kind.is_file() {
            return self.file(path, metadata.mode(), &fs::read(from)?);
        }
        if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
            return Ok(());
        }
        if path != Path::new("") {
            self.directory(path)?;
        }
        let mut entries = fs::read_dir(from)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            self.tree(&path.join(entry.file_name()), &entry.path())?;
        }
        Ok(())
    }

    /// Ends the archive. Another one may follow it in the same file.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry(Path::new("TRAILER!!!"), 0, (0, 0), &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(&mut self, path: &Path, mode: u32, device: (u32, u32), contents: &[u8]) -> io::Result<()> {
        let name = path.as_os_str().as_bytes();
        let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, path.display().to_string());
        let size = u32::try_from(contents.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let (major, minor) = device;
        // inode, mode, uid, gid, links, mtime, size, device holding the file (2), device node (2), name size, checksum
        let fields = [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.write(header.as_bytes())?;
        self.write(name)?;
        self.write(&[0])?;
        self.pad()?;
        self.write(contents)?;
        self.pad()?;
        self.inode += 1;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.to.write_all(bytes)
    }

    /// Headers and contents start at multiples of four bytes.
    fn pad(&mut self) -> io::Result<()> {
        let rest = self.written.next_multiple_of(4) - self.written;
        self.write(&vec![0; rest])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: name, mode, contents.
    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                u32::from_str_radix(std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap(), 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            found.push((name, mode, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
        found
    }

    #[test]
    fn an_archive_reads_back() {
        let mut archive = Archive::new(Vec::new());
        archive.directory(Path::new("etc")).unwrap();
        archive.file(Path::new("etc/a"), 0o755, b"hello").unwrap();
        archive.symlink(Path::new("etc/bb"), Path::new("a")).unwrap();
        archive.character_device(Path::new("console"), 5, 1).unwrap();
        let bytes = archive.finish().unwrap();
        let expected = [
            ("etc", 0o040_755, &b""[..]),
            ("etc/a", 0o100_755, b"hello"),
            ("etc/bb", 0o120_777, b"a"),
            ("console", 0o020_600, b""),
            ("TRAILER!!!", 0, b""),
        ];
        let found = entries(&bytes);
        let found: Vec<_> = found
            .iter()
            .map(|(name, mode, data)| (name.as_str(), *mode, &data[..]))
            .collect();
        assert_eq!(found, expected);
    }
}
