//! Classes F31 to F35.

use crate::cases;

cases! {}
