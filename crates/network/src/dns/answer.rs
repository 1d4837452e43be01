//! Answers from the directory of neighbours.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::Directory;

/// Seconds for which an answer may be kept. Source: moby `libnetwork`, `respTTL`.
const TTL: u32 = 600;

/// What the directory can say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Local {
    /// The whole answer.
    Known(Vec<u8>),
    /// It is somebody else's to answer.
    Unknown,
}

/// Looks a question up; none for what is no question at all.
pub(super) fn local(question: &[u8], directory: &dyn Directory, by_udp: bool) -> Option<Local> {
    let request = Message::from_vec(question).ok()?;
    if request.metadata.message_type != MessageType::Query {
        return None;
    }
    let [query] = request.queries.as_slice() else { return Some(Local::Unknown) };
    if request.metadata.op_code != OpCode::Query || query.query_class() != DNSClass::IN {
        return Some(Local::Unknown);
    }
    let Some(records) = look_up(query, directory) else { return Some(Local::Unknown) };
    let mut response = reply(&request, ResponseCode::NoError);
    response.add_answers(records);
    let most = if by_udp { usize::from(request.max_payload()) } else { usize::from(u16::MAX) };
    let answer = response.to_vec().ok()?;
    if answer.len() <= most {
        return Some(Local::Known(answer));
    }
    response.truncate().to_vec().ok().map(Local::Known)
}

/// The answer that there is none to be had.
pub(super) fn failure(question: &[u8]) -> Option<Vec<u8>> {
    reply(&Message::from_vec(question).ok()?, ResponseCode::ServFail).to_vec().ok()
}

fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.add_queries(request.queries.iter().cloned());
    response
}

fn look_up(query: &Query, directory: &dyn Directory) -> Option<Vec<Record>> {
    let name = query.name();
    let record = |data| Record::from_rdata(name.clone(), TTL, data);
    if query.query_type() == RecordType::PTR {
        let net = name.parse_arpa_name().ok()?;
        let whole = net.prefix_len() == net.max_prefix_len();
        let found = whole.then(|| directory.name_of(net.addr())).flatten()?;
        let found = Name::from_ascii(format!("{found}.")).ok()?;
        return Some(vec![record(RData::PTR(PTR(found)))]);
    }
    let text = name.to_lowercase().to_ascii();
    let mut addresses = directory.addresses(text.trim_end_matches('.'))?;
    rotate(&mut addresses);
    let records = addresses.into_iter().filter_map(|address| match (query.query_type(), address) {
        (RecordType::A, IpAddr::V4(address)) => Some(record(RData::A(A(address)))),
        (RecordType::AAAA, IpAddr::V6(address)) => Some(record(RData::AAAA(AAAA(address)))),
        _ => None,
    });
    Some(records.collect())
}

/// Each answer begins with another address, so that clients spread.
fn rotate(addresses: &mut [IpAddr]) {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    if addresses.len() > 1 {
        let length = addresses.len();
        addresses.rotate_left(TURN.fetch_add(1, Ordering::Relaxed) % length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known;

    impl Directory for Known {
        fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
            let texts: &[&str] = match name {
                "web" => &["10.0.0.2", "10.0.0.3", "fd00::2"],
                "many" => return Some((0..200).map(|n| IpAddr::from([10, 0, 1, n])).collect()),
                _ => return None,
            };
            Some(texts.iter().map(|text| text.parse().unwrap()).collect())
        }

        fn name_of(&self, address: IpAddr) -> Option<String> {
            (address.to_string() == "10.0.0.2").then(|| "web.shop".to_owned())
        }
    }

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn ask(name: &str, kind: RecordType) -> Option<Message> {
        match local(&question(name, kind), &Known, true).unwrap() {
            Local::Known(answer) => Some(Message::from_vec(&answer).unwrap()),
            Local::Unknown => None,
        }
    }

    #[test]
    fn neighbours_are_found_in_turn_and_others_are_not() {
        let first = |name: &str| ask(name, RecordType::A).unwrap().answers[0].data.to_string();
        let seen: std::collections::BTreeSet<String> = (0..12).map(|_| first("WEB.")).collect();
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert_eq!(ask("web", RecordType::AAAA).unwrap().answers.len(), 1);
        let none = ask("web", RecordType::MX).unwrap();
        assert_eq!((none.answers.len(), none.metadata.response_code), (0, ResponseCode::NoError));
        assert!(ask("example.org", RecordType::A).is_none());
        let back = ask("2.0.0.10.in-addr.arpa.", RecordType::PTR).unwrap();
        assert_eq!(back.answers[0].data.to_string(), "web.shop.");
        assert!(ask("3.0.0.10.in-addr.arpa.", RecordType::PTR).is_none());
    }

    #[test]
    fn what_does_not_fit_is_to_be_asked_by_tcp() {
        let long = ask("many", RecordType::A).unwrap();
        assert!(long.metadata.truncation && long.answers.is_empty());
        let Some(Local::Known(whole)) = local(&question("many", RecordType::A), &Known, false) else { panic!() };
        assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 200);
    }

    #[test]
    fn garbage_gets_no_answer_and_a_failure_says_so() {
        for garbage in [&b""[..], &[0xff; 40], &[0; 11]] {
            assert_eq!(local(garbage, &Known, true), None, "{garbage:?}");
        }
        let answer = question("web", RecordType::A);
        let failed = Message::from_vec(&failure(&answer).unwrap()).unwrap();
        assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
        // An answer is no question: two servers would talk for ever.
        assert_eq!(local(&failure(&answer).unwrap(), &Known, true), None);
    }
}
