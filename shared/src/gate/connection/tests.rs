//! The rules of one connection, as a table of what goes in and what is decided.

use super::*;

fn grant() -> Arc<Grant> {
    let filters = |texts: &[&str]| texts.iter().map(|text| Filter::new(text).unwrap()).collect();
    Arc::new(Grant { name: "pump".into(), publish: filters(&["plant/pump/#"]), subscribe: filters(&["cmd/pump/#"]) })
}

const LIMITS: Limits =
    Limits { packet_bytes_max: 1_024, topic_bytes_max: 32, unacknowledged_max: 4, subscriptions_max: 2 };

/// A connection, what others subscribe to, and what was decided.
struct Bench {
    connection: Connection,
    interest: Interest,
    out: Output,
}

impl Bench {
    fn new() -> Self {
        Self::with(Session::default(), 0)
    }

    fn with(session: Session, safe_through: u64) -> Self {
        let connection = Connection::new(grant(), LIMITS, session, safe_through);
        Self { connection, interest: Interest::default(), out: Output::default() }
    }

    fn receive(&mut self, packets: &[Packet]) -> Result<Received, End> {
        let mut buffer = BytesMut::new();
        for packet in packets {
            packet.write(&mut buffer);
        }
        self.connection.receive(&mut buffer, &self.interest, &mut self.out)
    }

    fn send(&mut self, packets: &[Packet]) {
        assert_eq!(self.receive(packets), Ok(Received::All));
    }

    fn broker_sends(&mut self, packet: &Packet) {
        let mut buffer = BytesMut::new();
        packet.write(&mut buffer);
        self.connection.receive_from_broker(&mut buffer, &mut self.out).unwrap();
    }

    fn safe(&mut self, through: u64) {
        self.connection.safe(through, &mut self.out);
    }

    fn replies(&mut self) -> Vec<Packet> {
        packets(&mut self.out.reply)
    }

    fn asked(&mut self) -> Vec<Packet> {
        packets(&mut self.out.broker)
    }

    fn delivered(&mut self) -> Vec<String> {
        texts(&mut self.out.deliver)
    }

    fn forwarded(&mut self) -> Vec<String> {
        texts(&mut self.out.forward)
    }
}

fn packets(buffer: &mut BytesMut) -> Vec<Packet> {
    std::iter::from_fn(|| packet::parse(buffer, 4_096).unwrap()).collect()
}

fn texts(publishes: &mut Vec<Publish>) -> Vec<String> {
    publishes.drain(..).map(|publish| String::from_utf8(publish.payload.to_vec()).unwrap()).collect()
}

fn publish(qos: QoS, id: u16, topic: &str, payload: &str) -> Publish {
    let (topic, payload) = (Bytes::from(topic.to_owned()), Bytes::from(payload.to_owned()));
    Publish { dup: false, qos, retain: false, topic, id, payload }
}

fn qos_1(id: u16, payload: &str) -> Packet {
    Packet::Publish(publish(QoS::AtLeastOnce, id, "plant/pump/t", payload))
}

fn qos_2(id: u16, payload: &str) -> Packet {
    Packet::Publish(publish(QoS::ExactlyOnce, id, "plant/pump/t", payload))
}

fn again(packet: &Packet) -> Packet {
    let Packet::Publish(publish) = packet else { panic!("a PUBLISH") };
    Packet::Publish(Publish { dup: true, ..publish.clone() })
}

fn subscribe(id: u16, filters: &[(&str, QoS)]) -> Packet {
    Packet::Subscribe { id, filters: filters.iter().map(|(filter, qos)| ((*filter).into(), *qos)).collect() }
}

#[test]
fn answers_wait_for_safety_and_keep_their_order() {
    let mut bench = Bench::new();
    bench.send(&[qos_1(7, "a"), qos_2(8, "b"), qos_1(9, "c")]);
    assert_eq!(bench.delivered(), ["a", "b", "c"]);
    assert_eq!(bench.replies(), []);
    bench.safe(1);
    assert_eq!(bench.replies(), [Packet::PubAck(7)]);
    bench.safe(3);
    assert_eq!(bench.replies(), [Packet::PubRec(8), Packet::PubAck(9)]);
    bench.send(&[Packet::PubRel(8), Packet::PingReq]);
    assert_eq!(bench.replies(), [Packet::PubComp(8), Packet::PingResp]);
    assert_eq!(bench.connection.unacknowledged(), 0);
}

#[test]
fn qos_0_is_counted_and_never_answered() {
    let mut bench = Bench::new();
    bench.send(&[Packet::Publish(publish(QoS::AtMostOnce, 0, "plant/pump/t", "a")), qos_1(1, "b")]);
    bench.safe(1);
    assert_eq!(bench.replies(), []);
    bench.safe(2);
    assert_eq!(bench.replies(), [Packet::PubAck(1)]);
    assert_eq!(bench.delivered(), ["a", "b"]);
}

#[test]
fn too_much_that_is_unsafe_stops_the_reading() {
    let mut bench = Bench::new();
    let mut buffer = BytesMut::new();
    (1..=6).for_each(|id| qos_1(id, "x").write(&mut buffer));
    assert_eq!(bench.connection.receive(&mut buffer, &bench.interest, &mut bench.out), Ok(Received::Full));
    assert_eq!(bench.delivered().len(), 4);
    bench.safe(1);
    assert_eq!(bench.connection.receive(&mut buffer, &bench.interest, &mut bench.out), Ok(Received::Full));
    assert_eq!(bench.delivered().len(), 1);
    bench.safe(5);
    assert_eq!(bench.connection.receive(&mut buffer, &bench.interest, &mut bench.out), Ok(Received::All));
    assert!(buffer.is_empty());
}

#[test]
fn a_topic_beyond_the_grant_is_answered_and_goes_nowhere() {
    let mut bench = Bench::new();
    bench.interest.add(&Filter::new("#").unwrap());
    let elsewhere = |id, topic: &str| Packet::Publish(publish(QoS::AtLeastOnce, id, topic, "x"));
    let long = "plant/pump/".to_owned() + &"a".repeat(40);
    // The answer to the second waits for the first: answers keep their order.
    let sent = [qos_1(1, "a"), elsewhere(2, "plant/other/t"), elsewhere(3, "$SYS/x"), elsewhere(4, &long)];
    assert_eq!(bench.receive(&sent), Ok(Received::Full));
    assert_eq!((bench.delivered().len(), bench.forwarded().len()), (1, 1));
    assert_eq!(bench.replies(), []);
    bench.safe(1);
    assert_eq!(bench.replies(), (1..=4).map(Packet::PubAck).collect::<Vec<_>>());
    let tally = bench.out.tally;
    assert_eq!((tally.messages, tally.not_granted, tally.reserved_topic, tally.topic_too_long), (1, 1, 1, 1));
    // A flood of what is refused does not fill anything up.
    let flood: Vec<_> = (1..=50).map(|id| elsewhere(id, "plant/other/t")).collect();
    bench.send(&flood);
    assert_eq!(bench.replies().len(), 50);
}

#[test]
fn what_breaks_the_protocol_ends_the_connection() {
    for (packet, expected) in [
        (Packet::Publish(publish(QoS::AtMostOnce, 0, "plant/+/t", "")), "topic"),
        (Packet::Publish(publish(QoS::AtMostOnce, 0, "", "")), "topic"),
        (Packet::PingResp, "server"),
        (Packet::ConnAck { session_present: false, code: 0 }, "server"),
        (subscribe(1, &[("cmd/pump/#/x", QoS::AtMostOnce)]), "filter"),
    ] {
        match Bench::new().receive(std::slice::from_ref(&packet)) {
            Err(End::Protocol(why)) => assert!(why.contains(expected), "{packet:?}: {why}"),
            other => panic!("{packet:?}: {other:?}"),
        }
    }
    assert_eq!(Bench::new().receive(&[Packet::Disconnect]), Err(End::Disconnect));
    let large = Packet::Publish(publish(QoS::AtMostOnce, 0, "plant/pump/t", &"x".repeat(2_000)));
    assert!(matches!(Bench::new().receive(&[large]), Err(End::Parse(ParseError::TooLarge(_)))));
}

#[test]
fn the_broker_gets_what_somebody_listens_to_and_what_is_retained() {
    let mut bench = Bench::new();
    bench.send(&[qos_1(1, "a")]);
    bench.interest.add(&Filter::new("plant/+/t").unwrap());
    bench.send(&[qos_2(2, "b")]);
    assert_eq!(bench.out.forward[0].qos, QoS::AtLeastOnce);
    bench.interest.remove(&Filter::new("plant/+/t").unwrap());
    bench.send(&[qos_1(3, "c")]);
    bench.safe(3);
    let retained = Publish { retain: true, ..publish(QoS::AtLeastOnce, 4, "plant/pump/t", "d") };
    bench.send(&[Packet::Publish(retained)]);
    assert_eq!(bench.forwarded(), ["b", "d"]);
    assert_eq!(bench.delivered(), ["a", "b", "c", "d"]);
}

#[test]
fn a_resend_is_taken_once() {
    let mut bench = Bench::new();
    let (first, second) = (qos_1(1, "a"), qos_1(2, "b"));
    bench.send(&[first.clone(), second.clone()]);
    bench.safe(1);
    assert_eq!(bench.replies(), [Packet::PubAck(1)]);

    // It comes back; the answer to 1 was lost, 2 is still under way.
    let mut bench = Bench::with(bench.connection.into_session(), 1);
    bench.send(&[again(&first), again(&second)]);
    assert_eq!(bench.delivered(), [""; 0]);
    assert_eq!(bench.out.tally.duplicates, 2);
    assert_eq!(bench.replies(), [Packet::PubAck(1)]);
    bench.safe(2);
    assert_eq!(bench.replies(), [Packet::PubAck(2)]);

    // The identifier is used again for another message, and only its resend arrives.
    bench.send(&[again(&qos_1(1, "other"))]);
    assert_eq!(bench.delivered(), ["other"]);
    // The same without the flag is a new message.
    bench.send(&[qos_1(2, "b")]);
    assert_eq!(bench.delivered(), ["b"]);
}

#[test]
fn a_qos_2_message_is_taken_once_until_it_is_released() {
    let mut bench = Bench::new();
    bench.send(&[qos_2(1, "a")]);
    let mut bench = Bench::with(bench.connection.into_session(), 0);
    bench.send(&[again(&qos_2(1, "a"))]);
    assert_eq!((bench.delivered().len(), bench.replies().len()), (0, 0));
    bench.safe(1);
    assert_eq!(bench.replies(), [Packet::PubRec(1)]);
    bench.send(&[Packet::PubRel(1), qos_2(1, "b")]);
    assert_eq!(bench.delivered(), ["b"]);

    let mut bench = Bench::new();
    bench.send(&(1..=3).map(|id| qos_2(id, "x")).collect::<Vec<_>>());
    bench.safe(3);
    bench.send(&[qos_2(4, "x")]);
    bench.safe(4);
    assert!(matches!(bench.receive(&[qos_2(5, "x")]), Err(End::Protocol(_))));
}

#[test]
fn what_was_lost_is_taken_again() {
    let mut bench = Bench::new();
    bench.send(&[qos_1(1, "safe"), qos_1(2, "lost"), qos_2(3, "lost too")]);
    let mut session = bench.connection.into_session();
    session.forget_unsafe(1);
    let mut bench = Bench::with(session, 0);
    bench.send(&[again(&qos_1(1, "safe")), again(&qos_1(2, "lost")), again(&qos_2(3, "lost too"))]);
    assert_eq!(bench.delivered(), ["lost", "lost too"]);
    assert_eq!(bench.replies(), [Packet::PubAck(1)]);
    bench.safe(2);
    assert_eq!(bench.replies(), [Packet::PubAck(2), Packet::PubRec(3)]);
}

#[test]
fn subscriptions_are_granted_filter_by_filter() {
    let mut bench = Bench::new();
    let asked = [
        ("cmd/pump/a", QoS::ExactlyOnce),
        ("cmd/other/a", QoS::AtLeastOnce),
        ("cmd/#", QoS::AtLeastOnce),
        ("$share/g/cmd/pump/a", QoS::AtLeastOnce),
        ("cmd/pump/+", QoS::AtMostOnce),
        ("cmd/pump/b", QoS::AtMostOnce),
    ];
    bench.send(&[subscribe(5, &asked)]);
    assert_eq!(bench.replies(), []);
    let granted = subscribe(5, &[("cmd/pump/a", QoS::AtLeastOnce), ("cmd/pump/+", QoS::AtMostOnce)]);
    assert_eq!(bench.asked(), [granted]);
    assert_eq!(bench.out.subscribed.iter().map(Filter::as_str).collect::<Vec<_>>(), ["cmd/pump/a", "cmd/pump/+"]);
    bench.broker_sends(&Packet::SubAck { id: 5, codes: vec![1, 0] });
    assert_eq!(bench.replies(), [Packet::SubAck { id: 5, codes: vec![1, 0x80, 0x80, 0x80, 0, 0x80] }]);
    assert_eq!(bench.out.tally.subscribe_refused, 4);

    // Nothing of it is granted: the broker is not asked.
    bench.send(&[subscribe(6, &[("plant/#", QoS::AtMostOnce)])]);
    assert_eq!(bench.replies(), [Packet::SubAck { id: 6, codes: vec![0x80] }]);
    assert_eq!(bench.asked(), []);
}

#[test]
fn only_known_filters_are_unsubscribed_at_the_broker() {
    let mut bench = Bench::new();
    bench.send(&[subscribe(1, &[("cmd/pump/a", QoS::AtLeastOnce)])]);
    bench.asked();
    let filters = vec!["cmd/pump/x".to_owned(), "cmd/pump/a".to_owned()];
    bench.send(&[Packet::Unsubscribe { id: 2, filters }]);
    assert_eq!(bench.asked(), [Packet::Unsubscribe { id: 2, filters: vec!["cmd/pump/a".into()] }]);
    assert_eq!(bench.replies(), [Packet::UnsubAck(2)]);
    assert_eq!(bench.out.unsubscribed.len(), 1);
    assert_eq!(bench.connection.session().subscriptions().count(), 0);
}

#[test]
fn the_broker_is_answered_in_its_order() {
    let mut bench = Bench::new();
    for id in 1..=3 {
        bench.broker_sends(&Packet::Publish(publish(QoS::AtLeastOnce, id, "cmd/pump/a", "x")));
    }
    assert_eq!(bench.replies().len(), 3);
    bench.send(&[Packet::PubAck(2), Packet::PubAck(9)]);
    assert_eq!(bench.asked(), []);
    bench.send(&[Packet::PubAck(1)]);
    assert_eq!(bench.asked(), [Packet::PubAck(1), Packet::PubAck(2)]);
    bench.send(&[Packet::PubAck(3)]);
    assert_eq!(bench.asked(), [Packet::PubAck(3)]);
}

#[test]
fn a_will_goes_where_a_publish_would() {
    let will = |topic: &str| Will { qos: QoS::ExactlyOnce, retain: true, topic: topic.into(), payload: "gone".into() };
    let mut bench = Bench::new();
    bench.connection.will(will("plant/pump/state"), &bench.interest, &mut bench.out);
    assert_eq!((bench.delivered(), bench.forwarded()), (vec!["gone".into()], vec!["gone".into()]));
    bench.connection.will(will("plant/other/state"), &bench.interest, &mut bench.out);
    assert_eq!(bench.delivered().len(), 0);
    for (topic, granted) in [("plant/pump/x", true), ("plant/other", false), ("plant/pump/+", false), ("$SYS/x", false)]
    {
        assert_eq!(Connection::grants_will(&grant(), topic), granted, "{topic}");
    }
}
