//! Names for containers that were given none: an adjective and the surname of a scientist or engineer.

use crate::container::store::ContainerStore;
use crate::error::{ApiError, ApiResult};

const ADJECTIVES: &[&str] = &[
    "able", "airy", "amber", "apt", "bold", "brave", "bright", "brisk", "calm", "candid", "clever", "cosmic", "crisp",
    "deft", "eager", "early", "earnest", "easy", "fair", "fleet", "fluent", "fond", "frank", "fresh", "gentle", "glad",
    "golden", "grand", "happy", "hardy", "honest", "humble", "jolly", "keen", "kind", "lively", "lucid", "mellow",
    "merry", "mighty", "modest", "neat", "nimble", "noble", "patient", "placid", "polite", "proud", "quick", "quiet",
    "rapid", "ready", "serene", "sharp", "silent", "smart", "steady", "sunny", "swift", "tidy", "upbeat", "vivid",
    "warm", "wise",
];

const SURNAMES: &[&str] = &[
    "abel",
    "agnesi",
    "allen",
    "ampere",
    "archimedes",
    "avicenna",
    "babbage",
    "backus",
    "banach",
    "bardeen",
    "bartik",
    "bell",
    "bernoulli",
    "bhaskara",
    "blackwell",
    "bohr",
    "boole",
    "borg",
    "bose",
    "brahe",
    "brattain",
    "cannon",
    "cantor",
    "carson",
    "cauchy",
    "cerf",
    "chandrasekhar",
    "chebyshev",
    "clarke",
    "codd",
    "conway",
    "copernicus",
    "cori",
    "cray",
    "curie",
    "darwin",
    "davinci",
    "dijkstra",
    "dirac",
    "easley",
    "edison",
    "einstein",
    "elion",
    "euclid",
    "euler",
    "faraday",
    "fermat",
    "fermi",
    "feynman",
    "franklin",
    "galileo",
    "galois",
    "gauss",
    "germain",
    "goodall",
    "hamilton",
    "hawking",
    "heisenberg",
    "hermann",
    "herschel",
    "hertz",
    "hilbert",
    "hodgkin",
    "hopper",
    "huygens",
    "hypatia",
    "jackson",
    "joliot",
    "kalam",
    "kapitsa",
    "keller",
    "kepler",
    "khayyam",
    "kirch",
    "knuth",
    "kolmogorov",
    "kovalevskaya",
    "lalande",
    "lamarr",
    "lamport",
    "laplace",
    "leakey",
    "leavitt",
    "leibniz",
    "liskov",
    "lovelace",
    "lumiere",
    "mahavira",
    "matsumoto",
    "maxwell",
    "mayer",
    "mccarthy",
    "mcclintock",
    "meitner",
    "mendel",
    "mendeleev",
    "minsky",
    "moore",
    "morse",
    "napier",
    "nash",
    "neumann",
    "newton",
    "nightingale",
    "nobel",
    "noether",
    "noyce",
    "panini",
    "pare",
    "pascal",
    "pasteur",
    "payne",
    "perlman",
    "pike",
    "planck",
    "poincare",
    "poitras",
    "ptolemy",
    "raman",
    "ramanujan",
    "rhodes",
    "ritchie",
    "roentgen",
    "rubin",
    "shannon",
    "snyder",
    "spence",
    "stallman",
    "swirles",
    "tesla",
    "thompson",
    "torvalds",
    "turing",
    "varahamihira",
    "volta",
    "wescoff",
    "wiles",
    "wilson",
    "wozniak",
    "wright",
    "wu",
    "yalow",
    "yonath",
];

/// How often a free name is looked for before a digit is put behind it.
const TRIES: u8 = 6;

/// Draws a name that is free.
///
/// # Errors
/// 500 when the kernel gives no randomness.
pub fn draw(store: &ContainerStore) -> ApiResult<String> {
    for attempt in 0_u8.. {
        let [a, b, c, d] = random()?;
        let adjective = ADJECTIVES[usize::from(a) % ADJECTIVES.len()];
        let surname = SURNAMES[usize::from(u16::from_be_bytes([b, c])) % SURNAMES.len()];
        let digit = if attempt < TRIES { String::new() } else { d.to_string() };
        let name = format!("{adjective}_{surname}{digit}");
        if store.is_free(&name) {
            return Ok(name);
        }
        if attempt == u8::MAX {
            break;
        }
    }
    Err(ApiError::internal("cannot find a free name; give one with --name"))
}

/// Draws bytes from the kernel.
///
/// # Errors
/// 500 when it gives none.
pub fn random<const N: usize>() -> ApiResult<[u8; N]> {
    let mut bytes = [0; N];
    let drawn = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    match drawn {
        Ok(length) if length == N => Ok(bytes),
        Ok(_) => Err(ApiError::internal("the kernel gave too little randomness")),
        Err(error) => Err(ApiError::caused("cannot draw random bytes", &error)),
    }
}

/// Whether a client may give this name. Source: moby `daemon/names`.
#[must_use]
pub fn is_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    name.len() >= 2 && name.len() <= 255 && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric()) && bytes.all(inside)
}

/// The error for a name that is not valid.
#[must_use]
pub fn invalid(name: &str) -> ApiError {
    let shown: String = name.chars().take(100).collect();
    ApiError::invalid(format!("Invalid container name ({shown}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_docker_takes() {
        for good in ["ab", "a.b-c_d", "9x"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", "a", "-ab", "../x", "a b", "a\nb", "a/b", "ä1", &"x".repeat(256)] {
            assert!(!is_valid(bad), "{bad:?}");
        }
    }

    #[test]
    fn every_drawn_name_is_valid_and_names_vary() {
        let store = ContainerStore::default();
        let names: std::collections::HashSet<_> = (0..50).map(|_| draw(&store).unwrap()).collect();
        assert!(names.len() > 40);
        assert!(names.iter().all(|name| is_valid(name) && name.contains('_')));
    }
}
