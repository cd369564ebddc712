//! Packets as the standard has them, cut anywhere, damaged, and noise.

use proptest::{collection::vec, option, prelude::*};

use super::*;

const BYTES_MAX: usize = 4_096;

fn bytes_of(packet: &Packet) -> BytesMut {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes);
    bytes
}

/// All packets of a buffer, and what is wrong with the next one.
fn parse_all(buffer: &mut BytesMut) -> (Vec<Packet>, Option<ParseError>) {
    let mut packets = Vec::new();
    loop {
        match parse(buffer, BYTES_MAX) {
            Ok(Some(packet)) => packets.push(packet),
            Ok(None) => return (packets, None),
            Err(error) => return (packets, Some(error)),
        }
    }
}

#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "a table reads better without references")]
fn check(bytes: &[u8], expected: Result<Option<Packet>, ParseError>) {
    assert_eq!(parse(&mut BytesMut::from(bytes), BYTES_MAX), expected);
}

#[test]
fn packets_as_in_the_standard() {
    let connect = Connect {
        clean_session: true,
        keep_alive_s: 10,
        client_id: "id".into(),
        will: Some(Will { qos: QoS::AtLeastOnce, retain: false, topic: "w".into(), payload: Bytes::from_static(b"x") }),
        username: Some("u".into()),
        password: Some(Bytes::from_static(b"p")),
    };
    check(
        b"\x10\x1a\x00\x04MQTT\x04\xce\x00\x0a\x00\x02id\x00\x01w\x00\x01x\x00\x01u\x00\x01p",
        Ok(Some(Packet::Connect(Box::new(connect)))),
    );
    let publish = Publish {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: true,
        topic: Bytes::from_static(b"a/b"),
        id: 10,
        payload: Bytes::from_static(b"hi"),
    };
    check(b"\x33\x09\x00\x03a/b\x00\x0ahi", Ok(Some(Packet::Publish(publish))));
    check(b"\x20\x02\x01\x00", Ok(Some(Packet::ConnAck { session_present: true, code: 0 })));
    check(b"\x62\x02\x00\x07", Ok(Some(Packet::PubRel(7))));
    let filters = vec![("a/+".into(), QoS::AtLeastOnce), ("#".into(), QoS::ExactlyOnce)];
    check(b"\x82\x0c\x00\x01\x00\x03a/+\x01\x00\x01#\x02", Ok(Some(Packet::Subscribe { id: 1, filters })));
    check(b"\xc0\x00", Ok(Some(Packet::PingReq)));
}

#[test]
fn what_is_no_packet() {
    use ParseError::{Malformed, TooLarge, Version};
    check(b"", Ok(None));
    check(b"\x30", Ok(None));
    check(b"\x30\xff\xff\xff\xff", Err(Malformed("a length of more than four bytes")));
    check(b"\x30\xff\x7f", Err(TooLarge(16_386)));
    check(b"\x30\xff\xff\xff\x7f", Err(TooLarge(268_435_460)));
    check(b"\x00\x00", Err(Malformed("a packet type that is reserved")));
    check(b"\xf0\x00", Err(Malformed("a packet type that is reserved")));
    check(b"\x60\x02\x00\x01", Err(Malformed("reserved flags are set")));
    check(b"\x36\x05\x00\x01a\x00\x01", Err(Malformed("a QoS of 3")));
    check(b"\x32\x05\x00\x01a\x00\x00", Err(Malformed("a packet identifier of zero")));
    check(b"\x32\x03\x00\x05a", Err(Malformed("a packet that ends too early")));
    check(b"\x40\x03\x00\x01\x00", Err(Malformed("bytes after the end of a packet")));
    check(b"\x82\x02\x00\x01", Err(Malformed("a SUBSCRIBE to nothing")));
    check(b"\xa2\x02\x00\x01", Err(Malformed("an UNSUBSCRIBE from nothing")));
    check(b"\x82\x06\x00\x01\x00\x01\xff\x00", Err(Malformed("a text that is not UTF-8 without U+0000")));
    check(b"\x10\x0c\x00\x04MQTT\x05\x02\x00\x00\x00\x00", Err(Version(5)));
    check(b"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x00\x00\x00", Err(Version(3)));
    check(b"\x10\x0c\x00\x04HTTP\x04\x02\x00\x00\x00\x00", Err(Malformed("another protocol")));
    check(b"\x10\x0c\x00\x04MQTT\x04\x03\x00\x00\x00\x00", Err(Malformed("reserved flags are set")));
    check(b"\x10\x0c\x00\x04MQTT\x04\x22\x00\x00\x00\x00", Err(Malformed("flags of a will without a will")));
    check(b"\x10\x0c\x00\x04MQTT\x04\x42\x00\x00\x00\x00", Err(Malformed("a password without a user name")));
    let many = Packet::Unsubscribe { id: 1, filters: vec!["a".into(); FILTERS_MAX + 1] };
    check(&bytes_of(&many), Err(Malformed("more filters in one packet than are allowed")));
}

#[test]
fn a_publish_is_a_slice_of_the_buffer() {
    let mut buffer = BytesMut::from(&b"\x30\x05\x00\x01axy\xc0\x00"[..]);
    let range = buffer.as_ptr_range();
    let Ok(Some(Packet::Publish(publish))) = parse(&mut buffer, BYTES_MAX) else { panic!("a PUBLISH") };
    assert!(range.contains(&publish.topic.as_ptr()) && range.contains(&publish.payload.as_ptr()));
    assert_eq!(buffer, &b"\xc0\x00"[..]);
}

#[test]
fn length_is_known_from_the_header() {
    for (bytes, expected) in
        [(&b"\x30\x05"[..], Some(7)), (b"\x30\x80\x01", Some(131)), (b"\x30\x80", None), (b"", None)]
    {
        assert_eq!(length(bytes), expected);
    }
}

fn texts() -> impl Strategy<Value = String> {
    "[a-z/+#ä]{0,20}"
}

fn some_bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn levels() -> impl Strategy<Value = QoS> {
    prop_oneof![Just(QoS::AtMostOnce), Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)]
}

fn publishes() -> impl Strategy<Value = Packet> {
    (any::<bool>(), levels(), any::<bool>(), texts(), 1..=u16::MAX, some_bytes()).prop_map(
        |(dup, qos, retain, topic, id, payload)| {
            let id = if qos == QoS::AtMostOnce { 0 } else { id };
            Packet::Publish(Publish { dup, qos, retain, topic: topic.into(), id, payload })
        },
    )
}

fn connects() -> impl Strategy<Value = Packet> {
    let wills = (levels(), any::<bool>(), texts(), some_bytes());
    let wills = wills.prop_map(|(qos, retain, topic, payload)| Will { qos, retain, topic, payload });
    let logins = option::of((texts(), option::of(some_bytes())));
    (any::<bool>(), any::<u16>(), texts(), option::of(wills), logins).prop_map(
        |(clean_session, keep_alive_s, client_id, will, login)| {
            let (username, password) = login.unzip();
            let password = password.flatten();
            Packet::Connect(Box::new(Connect { clean_session, keep_alive_s, client_id, will, username, password }))
        },
    )
}

fn packets() -> impl Strategy<Value = Packet> {
    let id = 1..=u16::MAX;
    prop_oneof![
        publishes(),
        connects(),
        (any::<bool>(), any::<u8>()).prop_map(|(session_present, code)| Packet::ConnAck { session_present, code }),
        id.clone().prop_map(Packet::PubAck),
        id.clone().prop_map(Packet::PubRec),
        id.clone().prop_map(Packet::PubRel),
        id.clone().prop_map(Packet::PubComp),
        id.clone().prop_map(Packet::UnsubAck),
        (id.clone(), vec((texts(), levels()), 1..5)).prop_map(|(id, filters)| Packet::Subscribe { id, filters }),
        (id.clone(), vec(any::<u8>(), 0..5)).prop_map(|(id, codes)| Packet::SubAck { id, codes }),
        (id, vec(texts(), 1..5)).prop_map(|(id, filters)| Packet::Unsubscribe { id, filters }),
        Just(Packet::PingReq),
        Just(Packet::PingResp),
        Just(Packet::Disconnect),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(packets in vec(packets(), 0..10)) {
        let mut buffer = BytesMut::new();
        for packet in &packets {
            packet.write(&mut buffer);
        }
        prop_assert_eq!(parse_all(&mut buffer), (packets, None));
        prop_assert!(buffer.is_empty());
    }

    /// However the network cuts the bytes, the packets are the same.
    #[test]
    fn any_split_gives_the_same_packets(packets in vec(packets(), 1..4), pieces in 1_usize..40) {
        let mut bytes = BytesMut::new();
        for packet in &packets {
            packet.write(&mut bytes);
        }
        let mut buffer = BytesMut::new();
        let mut read = Vec::new();
        for piece in bytes.chunks(pieces) {
            buffer.extend_from_slice(piece);
            let (more, error) = parse_all(&mut buffer);
            prop_assert_eq!(error, None);
            read.extend(more);
        }
        prop_assert_eq!(read, packets);
    }

    #[test]
    fn a_packet_cut_short_is_waited_for(packet in packets()) {
        let bytes = bytes_of(&packet);
        for length in 0..bytes.len() {
            prop_assert_eq!(parse(&mut BytesMut::from(&bytes[..length]), BYTES_MAX), Ok(None));
        }
    }

    #[test]
    fn noise_never_panics_and_is_never_read_twice(noise in vec(any::<u8>(), 0..300)) {
        let mut buffer = BytesMut::from(&noise[..]);
        let (packets, _) = parse_all(&mut buffer);
        prop_assert!(packets.len() * 2 + buffer.len() <= noise.len());
    }

    #[test]
    fn a_damaged_packet_is_another_or_an_error(packet in packets(), at: prop::sample::Index, bit in 0..8) {
        let mut bytes = bytes_of(&packet);
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        let before = bytes.len();
        let _any = parse(&mut bytes, BYTES_MAX);
        prop_assert!(bytes.len() <= before);
    }
}
