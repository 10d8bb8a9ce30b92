//! Pseudo terminals: their size, and pairs of them. Vigil holds masters only;
//! slaves belong to containers.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::Result;

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_winsize, libc::TIOCSWINSZ, libc::winsize);
    nix::ioctl_read_bad!(get_winsize, libc::TIOCGWINSZ, libc::winsize);
}

/// Columns and rows of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Sets the size; its foreground process group gets SIGWINCH if it changed.
pub fn resize(master: impl AsFd, size: Size) -> Result<()> {
    let wanted = libc::winsize {
        ws_row: size.height,
        ws_col: size.width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize through the pointer, which is valid.
    unsafe { ioctl::set_winsize(master.as_fd().as_raw_fd(), &raw const wanted) }.map(drop)
}

/// The size now.
pub fn size(tty: impl AsFd) -> Result<Size> {
    let mut found = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one winsize through the pointer, which is valid.
    unsafe { ioctl::get_winsize(tty.as_fd().as_raw_fd(), &raw mut found) }?;
    Ok(Size {
        width: found.ws_col,
        height: found.ws_row,
    })
}

/// A new pair: (master, slave), both blocking and close-on-exec.
pub fn open_pair() -> Result<(OwnedFd, OwnedFd)> {
    let pair = nix::pty::openpty(None, None)?;
    crate::fd::set_close_on_exec(&pair.master, true)?;
    crate::fd::set_close_on_exec(&pair.slave, true)?;
    Ok((pair.master, pair.slave))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_size_set_on_the_master_is_seen_by_the_slave() {
        let (master, slave) = open_pair().unwrap();
        let wanted = Size {
            width: 132,
            height: 43,
        };
        resize(&master, wanted).unwrap();
        assert_eq!(size(&slave).unwrap(), wanted);
        let (pipe, _w) = crate::fd::pipe().unwrap();
        assert!(resize(&pipe, wanted).is_err());
    }
}
