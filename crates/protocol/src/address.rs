//! Where the socket of a container lies.
//!
//! Owns the computation, which must agree byte for byte with containerd's own:
//! the name is a hash of a path that Go joined and cleaned. It touches no file.
//! No grouping: a container's socket is named after its own id.

use std::path::Path;

use sha2::{Digest, Sha256};
use vigil_model::{Namespace, TaskId};

use crate::Error;

/// Where sockets lie unless bootstrap parameters say otherwise.
pub const DEFAULT_DIR: &str = "/run/containerd/s";

/// Longest path of a socket, in bytes (containerd's `socketPathLimit`).
pub const PATH_MAX: usize = 106;

/// The path of a container's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    path: String,
}

impl Address {
    /// The path for a container of the containerd at `containerd` (the value
    /// of `-address`), in `dir` or, if that is `None` or empty, in
    /// [`DEFAULT_DIR`].
    pub fn new(
        containerd: &str,
        namespace: &Namespace,
        id: &TaskId,
        dir: Option<&str>,
    ) -> Result<Self, Error> {
        let named = join(&[containerd, namespace.as_str(), id.as_str()]);
        let dir = dir.filter(|dir| !dir.is_empty()).unwrap_or(DEFAULT_DIR);
        let hash = format!("{:x}", Sha256::digest(named.as_bytes()));
        Self::at(dir, join(&[dir, &hash]))
    }

    /// A path given outright (`-socket`).
    pub fn given(path: &str) -> Result<Self, Error> {
        Self::at(path, path.to_owned())
    }

    fn at(dir: &str, path: String) -> Result<Self, Error> {
        if !dir.starts_with('/') {
            return Err(Error::SocketDirRelative {
                dir: crate::error::shown(dir),
            });
        }
        if path.len() > PATH_MAX {
            return Err(Error::SocketPathTooLong {
                length: path.len(),
                limit: PATH_MAX,
                path: crate::error::shown(&path),
            });
        }
        Ok(Self { path })
    }

    /// The path in the file system.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether a path has the name of another container's socket, in whatever directory. One
    /// given outright may have any other name.
    pub fn is_of_another(&self, path: &Path) -> bool {
        let own = Path::new(&self.path).file_name();
        let name = path.file_name().and_then(|name| name.to_str());
        let hash = |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        name.is_some_and(hash) && path.file_name() != own
    }

    /// As containerd is told: `unix://` and the path.
    pub fn uri(&self) -> String {
        format!("unix://{}", self.path)
    }
}

/// Go's `path.Join`: the elements that are not empty, with `/` between, cleaned.
fn join(elements: &[&str]) -> String {
    let present: Vec<&str> = elements.iter().copied().filter(|e| !e.is_empty()).collect();
    if present.is_empty() {
        return String::new();
    }
    clean(&present.join("/"))
}

/// Go's `path.Clean`: no empty element, no `.`, `..` resolved as text, no `..`
/// above the root, no slash at the end, `.` for nothing.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut kept: Vec<&str> = Vec::new();
    for element in path.split('/') {
        match element {
            "" | "." => {}
            ".." => match kept.last() {
                Some(&last) if last != ".." => {
                    kept.pop();
                }
                _ if rooted => {}
                _ => kept.push(".."),
            },
            _ => kept.push(element),
        }
    }
    let body = kept.join("/");
    match (rooted, body.is_empty()) {
        (true, _) => format!("/{body}"),
        (false, true) => ".".to_owned(),
        (false, false) => body,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    /// `delete` of one container left its own socket because the address it found was a
    /// neighbour's, and would have removed the neighbour's.
    #[test]
    fn a_neighbours_socket_is_told_by_its_name() {
        let of = |id: &str, dir: Option<&str>| {
            let (namespace, id) = (Namespace::new("n").unwrap(), TaskId::new(id).unwrap());
            Address::new("/c.sock", &namespace, &id, dir).unwrap()
        };
        let own = of("a", None);
        assert!(own.is_of_another(Path::new(of("b", None).path())));
        assert!(!own.is_of_another(Path::new(own.path())));
        assert!(!own.is_of_another(Path::new(of("a", Some("/elsewhere")).path())));
        assert!(!own.is_of_another(Path::new("/run/given.sock")));
    }

    use proptest::prelude::*;

    use super::*;

    fn ns(text: &str) -> Namespace {
        Namespace::new(text).unwrap()
    }

    fn id(text: &str) -> TaskId {
        TaskId::new(text).unwrap()
    }

    #[test]
    fn cleans_as_go_does() {
        // The table of Go's own documentation and tests of path.Clean.
        for (path, cleaned) in [
            ("", "."),
            ("abc", "abc"),
            ("abc/def", "abc/def"),
            (".", "."),
            ("..", ".."),
            ("../..", "../.."),
            ("../../abc", "../../abc"),
            ("/abc", "/abc"),
            ("/", "/"),
            ("abc/", "abc"),
            ("a/b/c/", "a/b/c"),
            ("./", "."),
            ("../", ".."),
            ("/abc/", "/abc"),
            ("abc//def//ghi", "abc/def/ghi"),
            ("//abc", "/abc"),
            ("///abc", "/abc"),
            ("abc/./def", "abc/def"),
            ("/./abc/def", "/abc/def"),
            ("abc/.", "abc"),
            ("abc/def/ghi/../jkl", "abc/def/jkl"),
            ("abc/def/..", "abc"),
            ("abc/def/../..", "."),
            ("/abc/def/../..", "/"),
            ("abc/def/../../..", ".."),
            ("/abc/def/../../..", "/"),
            ("abc/def/../../../ghi/jkl/../../../mno", "../../mno"),
            ("abc/./../def", "def"),
            ("abc/../../././../def", "../../def"),
        ] {
            assert_eq!(clean(path), cleaned, "{path:?}");
        }
        assert_eq!(join(&["", "", ""]), "");
        assert_eq!(join(&["/a/", "", "b"]), "/a/b");
    }

    #[test]
    fn the_name_is_containerds() {
        // printf %s /run/containerd/containerd.sock/k8s.io/abc | sha256sum
        let address = Address::new(
            "/run/containerd/containerd.sock",
            &ns("k8s.io"),
            &id("abc"),
            None,
        )
        .unwrap();
        assert_eq!(
            address.uri(),
            "unix:///run/containerd/s/a99a1752d3a0fadfb1f869026f16760475df03a572e20f4ccea9e6c1e5470b72"
        );
        let again = Address::new(
            "/run//containerd/./x/../containerd.sock/",
            &ns("k8s.io"),
            &id("abc"),
            Some(""),
        )
        .unwrap();
        assert_eq!(again, address);
        // An absent address joins to a relative path: printf %s default/abc | sha256sum
        let none = Address::new("", &ns("default"), &id("abc"), Some("/tmp/s/")).unwrap();
        assert_eq!(
            none.path(),
            "/tmp/s/0531dfd4f71e7d2a923fd36fc57ffa0e9941aeaa852ec967d2987d93d881347a"
        );
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let fits = format!("/{}", "d".repeat(PATH_MAX - 64 - 2));
        let address = Address::new("/a", &ns("n"), &id("i"), Some(&fits)).unwrap();
        assert_eq!(address.path().len(), PATH_MAX);
        let long = format!("{fits}d");
        assert!(matches!(
            Address::new("/a", &ns("n"), &id("i"), Some(&long)),
            Err(Error::SocketPathTooLong { length: 107, .. })
        ));
        assert!(matches!(
            Address::new("/a", &ns("n"), &id("i"), Some("s")),
            Err(Error::SocketDirRelative { .. })
        ));
        assert!(Address::given("/tmp/x").is_ok());
        assert!(Address::given("").is_err());
    }

    proptest! {
        #[test]
        fn cleaning_twice_changes_nothing(path in "[a./]{0,24}") {
            let once = clean(&path);
            prop_assert_eq!(clean(&once), once.clone());
            prop_assert!(once == "/" || !once.ends_with('/'));
            prop_assert_eq!(once.starts_with('/'), path.starts_with('/'));
        }
    }
}
