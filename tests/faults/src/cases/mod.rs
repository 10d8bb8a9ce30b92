//! The classes of the catalogue, a file each.

use crate::Case;

pub mod f01;
pub mod f02;
pub mod f03;
pub mod f04;
pub mod f05;
pub mod f06;
pub mod f07;
pub mod f08;
pub mod f09;
pub mod f10;
pub mod f11;
pub mod f12;
pub mod f13;
pub mod f14;
pub mod f15;
pub mod f16;
pub mod f17;
pub mod f18;
pub mod f19;
pub mod f20;
pub mod f21;
pub mod f22;
pub mod f23;
pub mod f24;
pub mod f25;
pub mod f26;
pub mod f28;
pub mod f29;
pub mod f30;
pub mod f33;
pub mod f34;
pub mod f37;
pub mod f40;
pub mod f43;
pub mod forsaken;
pub mod waited;

/// All cases of the catalogue, in its order.
#[must_use]
pub fn all() -> Vec<Case> {
    [
        f01::TABLE,
        f02::TABLE,
        f03::TABLE,
        f04::TABLE,
        f05::TABLE,
        f06::TABLE,
        f07::TABLE,
        f08::TABLE,
        waited::TABLE,
        forsaken::TABLE,
        f09::TABLE,
        f10::TABLE,
        f11::TABLE,
        f12::TABLE,
        f13::TABLE,
        f14::TABLE,
        f15::TABLE,
        f16::TABLE,
        f17::TABLE,
        f18::TABLE,
        f19::TABLE,
        f20::TABLE,
        f21::TABLE,
        f22::TABLE,
        f23::TABLE,
        f24::TABLE,
        f25::TABLE,
        f26::TABLE,
        f28::TABLE,
        f29::TABLE,
        f30::TABLE,
        f33::TABLE,
        f34::TABLE,
        f37::TABLE,
        f40::TABLE,
        f43::TABLE,
    ]
    .concat()
}
