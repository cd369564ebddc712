//! Configurations and all the faults that are told of each.

use super::*;

fn parse(text: &str) -> Result<Config, Vec<Fault>> {
    Config::parse(text, Path::new("/etc/gemba"))
}

/// `expected`: a line, a key, and words of the message, for each fault in order.
#[track_caller]
fn check(text: &str, expected: &[(usize, &str, &str)]) {
    let faults = parse(text).expect_err("it has faults");
    let all = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert_eq!(faults.len(), expected.len(), "{text}\n{all}");
    for (fault, (line, key, words)) in faults.iter().zip(expected) {
        assert_eq!((fault.line, fault.key.as_str()), (*line, *key), "{text}\n{all}");
        assert!(fault.message.contains(words), "{words:?} is not in:\n{all}");
    }
}

#[test]
fn an_empty_file_is_a_configuration() {
    let config = parse("").unwrap();
    let Mqtt::Gate(gate) = &config.mqtt else { panic!("the gate is the default") };
    assert_eq!(gate.listen, ["127.0.0.1:1883".parse().unwrap()]);
    assert_eq!(gate.devices.len(), 1);
    assert_eq!(gate.devices[0].proof, Proof::Anonymous);
    assert_eq!(config.sources.len(), 1);
    assert_eq!(config.sources[0].topic.as_str(), "plant/{machine}/{sensor}");
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.http, "127.0.0.1:9600".parse().unwrap());
}

#[test]
fn the_example_is_the_defaults_and_its_comments_are_true() {
    let example = include_str!("../../edge.example.toml");
    assert_eq!(parse(example), parse(""), "what is not commented out in the example is the default");
    // `#key = value` is a default, `#: key = value` only an example.
    let told: String = example
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_alphabetic())).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_eq!(parse(&told), parse(""), "the defaults that the example tells are the defaults");
    let full: String =
        example.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).flat_map(|line| [line, "\n"]).collect();
    let config = parse(&full).unwrap_or_else(|faults| panic!("{faults:#?}"));
    assert!(config.machines.len() == 1 && config.sources.len() > 1);
}

#[test]
fn every_fault_is_told_with_its_line_and_key() {
    check("[gateway\n", &[(1, "", "this is no TOML")]);
    check("[gateway]\ndata_dri = \"x\"\n", &[(2, "gateway.data_dri", "did you mean `data_dir`?")]);
    check("[mqqt]\n[x]\ny = 1\n", &[(1, "mqqt", "did you mean `mqtt`?"), (2, "x", "here may stand")]);
    check("[gateway]\ndata_dir = 5\n", &[(2, "gateway.data_dir", "it should be a text in quotes")]);
    check("[gateway]\nclock = \"ntp\"\n", &[(2, "gateway.clock", "\"auto\", \"trusted\", \"cloud\"")]);
    check(
        "[defaults]\nstep = \"10\"\ninterval = \"1 fortnight\"\n",
        &[(2, "defaults.step", "for example \"10s\""), (3, "defaults.interval", "ms, s, min, h, d")],
    );
    check("[defaults]\nstep = \"3s\"\n", &[(2, "defaults.step", "a whole number of steps")]);
    check("[limits]\nmachines_max = 0\n", &[(2, "limits.machines_max", "from 1 to 10000")]);
    check("[outbox]\nbytes_max = \"1MiB\"\n", &[(2, "outbox.bytes_max", "from 16MiB")]);
    check("[http]\nlisten = \"0.0.0.0:9600\"\n", &[(2, "http.listen", "only to this machine")]);
    check("[cloud]\nurl = \"http://x\"\n", &[(2, "cloud.url", "mqtts://host:port")]);
    check("[cloud]\nurl = \"mqtt://u:p@x\"\n", &[(2, "cloud.url", "`password_file`")]);
}

#[test]
fn faults_of_brokers_and_devices() {
    check("[mqtt]\nlisten = \"localhost\"\n", &[(2, "mqtt.listen", "an IP address and a port")]);
    check("[mqtt]\nlisten = \"0.0.0.0:1883\"\n", &[(2, "mqtt.listen", "nobody could connect")]);
    check("[mqtt]\nlisten = \"0.0.0.0:1883\"\nanonymous = true\n", &[(3, "mqtt.anonymous", "loopback")]);
    check(
        "[mqtt]\nurl = \"mqtt://h:1883\"\nlisten = \"127.0.0.1:1\"\nkey = \"k\"\ncertificate = \"c\"\n",
        &[(3, "mqtt.listen", "keep one of the two")],
    );
    check("[mqtt.tls]\ncertificate = \"c\"\n", &[(1, "mqtt.tls", "`key` is missing"), (1, "mqtt.tls", "nobody could")]);
    let devices = "[mqtt]\nlisten = \"0.0.0.0:1883\"\n";
    check(
        &format!("{devices}[[mqtt.devices]]\nname = \"a\"\npassword_hash = \"hunter2\"\npublish = \"a/#\"\n"),
        &[(5, "mqtt.devices[0].password_hash", "gemba-edge passwd")],
    );
    check(
        &format!(
            "{devices}[[mqtt.devices]]\nname = \"a\"\npassword_file = \"f\"\nanonymous = true\npublish = \"a/#/b\"\n"
        ),
        &[
            (6, "mqtt.devices[0].anonymous", "one of"),
            (6, "mqtt.devices[0].anonymous", "loopback"),
            (7, "mqtt.devices[0].publish", "no MQTT topic filter"),
        ],
    );
    check(
        &format!("{devices}[[mqtt.devices]]\nname = \"a\"\npassword_file = \"f\"\n"),
        &[(3, "mqtt.devices[0]", "`publish`")],
    );
}

#[test]
fn a_password_that_stands_in_the_wrong_place_is_not_repeated() {
    let text = "[[mqtt.devices]]\nname = \"a\"\npassword_hash = \"hunter2\"\npublish = \"#\"\n";
    let faults = parse(text).unwrap_err();
    assert!(!format!("{faults:?}").contains("hunter2"), "{faults:?}");
}

#[test]
fn faults_of_sources_and_machines() {
    check("[[sources]]\nformat = \"json\"\n", &[(1, "sources[0]", "`topic` is missing")]);
    check("[[sources]]\ntopic = \"a/b\"\n", &[(2, "sources[0].topic", "machine?"), (2, "sources[0].topic", "sensor?")]);
    check("[[sources]]\ntopic = \"a/{machin}/b\"\n", &[(2, "sources[0].topic", "{machine}")]);
    check(
        "[[sources]]\ntopic = \"a/{machine}/{sensor}\"\n\n[[sources]]\ntopic = \"a/{machine}/x\"\nsensor = \"x\"\n",
        &[(5, "sources[1].topic", "line 2")],
    );
    check(
        "[[sources]]\ntopic = \"a/{machine}/{sensor}\"\nformat = \"number\"\nvalue = \"/v\"\n",
        &[(4, "sources[0].value", "a plain number has no such part")],
    );
    check("[[sources]]\ntopic = \"a/{machine}\"\nvalues = \"data\"\n", &[(3, "sources[0].values", "begins with '/'")]);
    check(
        "[[machines]]\nid = \"a/b\"\nunits = { t = \"°C\", p = \"bars\" }\npower = \"kw\"\n",
        &[
            (2, "machines[0].id", "letters, digits"),
            (3, "machines[0].units.p", "no unit of UCUM"),
            (3, "machines[0].units.t", "write \"Cel\""),
            (4, "machines[0].power", "units.kw"),
        ],
    );
    check(
        "[[machines]]\nid = \"a\"\nunits = { e = \"kW.h\" }\npower = \"e\"\n",
        &[(4, "machines[0].power", "units.e = \"W\", \"kW\" or \"MW\"")],
    );
    check("[[machines]]\nid = \"a\"\n[[machines]]\nid = \"a\"\n", &[(4, "machines[1].id", "line 2 already")]);
    check(
        "[[machines]]\nid = \"a\"\nmode = { sensor = \"s\", off_below = 2, idle_below = 1 }\n",
        &[(3, "machines[0].mode.idle_below", "not be less")],
    );
}
