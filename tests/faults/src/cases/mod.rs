//! The classes of the catalogue, five to a file.

use crate::Case;

pub mod f01;
pub mod f02;
pub mod f03;
pub mod f04;
pub mod f06;
pub mod f07;
pub mod f08;
pub mod f11_f15;
pub mod f15;
pub mod f16_f20;
pub mod f18;
pub mod f21_f25;
pub mod f24;
pub mod f26;
pub mod f28;
pub mod f30;
pub mod f31_f35;
pub mod f33;
pub mod f36_f40;
pub mod f41_f45;
pub mod f46_f51;
pub mod poor;

/// All cases of the catalogue, in its order.
#[must_use]
pub fn all() -> Vec<Case> {
    [
        f01::TABLE,
        f02::TABLE,
        f03::TABLE,
        f04::TABLE,
        f06::TABLE,
        f07::TABLE,
        f08::TABLE,
        f11_f15::TABLE,
        f15::TABLE,
        f16_f20::TABLE,
        f18::TABLE,
        f21_f25::TABLE,
        f24::TABLE,
        f26::TABLE,
        f28::TABLE,
        f30::TABLE,
        f33::TABLE,
        f31_f35::TABLE,
        f36_f40::TABLE,
        f41_f45::TABLE,
        f46_f51::TABLE,
        poor::TABLE,
    ]
    .concat()
}
