use super::*;
use crate::virtio::testing::{Driver, torment};

#[test]
fn f96_answers_are_random_and_bounded() {
    let mut driver = Driver::new(Entropy);
    let first = driver.request(0, &[], &[64])[0];
    let second = driver.request(0, &[], &[64])[0];
    assert_ne!(driver.bytes(first, 64), driver.bytes(second, 64));
    driver.request(0, &[], &[1 << 20]);
    assert_eq!(driver.answers(0), [(0, 64), (0, 64), (0, 256)]);
    assert_eq!(driver.read(0x60), 1);
    driver.write(0x64, 1);
    assert_eq!(driver.read(0x60), 0);
}

#[test]
fn f96_a_request_without_room_is_refused() {
    let mut driver = Driver::new(Entropy);
    driver.request(0, &[b"to read"], &[]);
    assert!(driver.gave_up());
}

#[test]
fn nonsense_does_no_harm() {
    torment(|| Entropy, 300);
}
