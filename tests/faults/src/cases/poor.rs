//! Full and poor hosts: what the classes have in common. A case here still bears the
//! number of the class it belongs to.

use crate::cases;

cases! {}
