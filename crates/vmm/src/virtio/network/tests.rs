use super::*;
use crate::virtio::testing::{Driver, torment};

#[test]
fn frames_are_lost_and_none_come() {
    let mut driver = Driver::new(Network::new(1));
    driver.request(0, &[], &[1500]);
    driver.request(1, &[&[0; 12], b"frame"], &[]);
    assert_eq!((driver.answers(0), driver.answers(1)), (vec![], vec![(0, 0)]));
}

#[test]
fn slots_have_addresses_of_their_own() {
    assert_ne!(Network::new(0).configuration(), Network::new(1).configuration());
}

#[test]
fn nonsense_does_no_harm() {
    torment(|| Network::new(0), 300);
}
