//! What a new configuration changes in a daemon that runs: what is taken at once, and what only a restart brings.
//!
//! Taken at once: devices with their passwords and grants, certificates, sources, machines, models, limits, periods, budgets, and
//! the way to the cloud. A restart is needed where a socket or a directory would be another one.

use super::{Config, GateSettings, Mqtt};

/// A configuration that a running daemon can take, and the keys whose new values it cannot.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// The new configuration, with the values in use for the keys in `restart`.
    pub config: Config,
    /// Keys as they stand in the file: `mqtt.listen`.
    pub restart: Vec<&'static str>,
}

/// Puts what `new` says into what runs.
#[must_use]
pub fn merge(running: &Config, new: Config) -> Merged {
    let mut config = new;
    let mut restart = Vec::new();
    keep(&mut config.data_dir, &running.data_dir, "gateway.data_dir", &mut restart);
    keep(&mut config.clock, &running.clock, "gateway.clock", &mut restart);
    match (&mut config.mqtt, &running.mqtt) {
        (Mqtt::Gate(new), Mqtt::Gate(running)) => merge_gate(new, running, &mut restart),
        (Mqtt::External(new), Mqtt::External(running)) => {
            keep(&mut new.url, &running.url, "mqtt.url", &mut restart);
            keep(&mut new.client_id, &running.client_id, "mqtt.client_id", &mut restart);
        }
        (new, running) => keep(new, running, "mqtt.url", &mut restart),
    }
    keep(&mut config.http, &running.http, "http.listen", &mut restart);
    keep(&mut config.disk_free_min, &running.disk_free_min, "outbox.disk_free_min", &mut restart);
    keep(&mut config.sync_interval, &running.sync_interval, "outbox.durability", &mut restart);
    Merged { config, restart }
}

fn merge_gate(new: &mut GateSettings, running: &GateSettings, restart: &mut Vec<&'static str>) {
    keep(&mut new.listen, &running.listen, "mqtt.listen", restart);
    match (&mut new.tls, &running.tls) {
        (Some(new), Some(running)) => keep(&mut new.listen, &running.listen, "mqtt.tls.listen", restart),
        (new, running) => keep(new, running, "mqtt.tls", restart),
    }
    keep(&mut new.connections_max, &running.connections_max, "mqtt.connections_max", restart);
    keep(&mut new.unacknowledged_max, &running.unacknowledged_max, "mqtt.unacknowledged_max", restart);
}

fn keep<T: Clone + PartialEq>(new: &mut T, running: &T, key: &'static str, restart: &mut Vec<&'static str>) {
    if new != running {
        new.clone_from(running);
        restart.push(key);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("/etc/gemba")).unwrap()
    }

    #[track_caller]
    fn check(running: &str, new: &str, restart: &[&str]) -> Config {
        let merged = merge(&config(running), config(new));
        assert_eq!(merged.restart, restart, "{new}");
        assert_eq!(merge(&merged.config, config(new)).restart, restart, "it is asked for until it happens: {new}");
        assert_eq!(merge(&merged.config, config(running)).restart, [""; 0], "nothing is asked for any more: {new}");
        merged.config
    }

    #[test]
    fn what_a_restart_is_needed_for() {
        check("", "", &[]);
        check("", "[gateway]\ndata_dir = \"/srv/x\"\nclock = \"trusted\"\n", &["gateway.data_dir", "gateway.clock"]);
        check(
            "",
            "[mqtt]\nlisten = \"127.0.0.1:1884\"\nconnections_max = 5\n",
            &["mqtt.listen", "mqtt.connections_max"],
        );
        check("", "[mqtt]\nurl = \"mqtt://b\"\n", &["mqtt.url"]);
        check("[mqtt]\nurl = \"mqtt://b\"\n", "[mqtt]\nurl = \"mqtt://c\"\nusername = \"u\"\n", &["mqtt.url"]);
        check("", "[http]\nlisten = \"127.0.0.1:9601\"\n", &["http.listen"]);
        check(
            "",
            "[outbox]\ndisk_free_min = \"1GiB\"\ndurability = \"interval\"\n",
            &["outbox.disk_free_min", "outbox.durability"],
        );
    }

    #[test]
    fn everything_else_is_taken() {
        let tls = |certificate: &str| {
            format!(
                "[mqtt.tls]\nlisten = \"0.0.0.0:8883\"\ncertificate = \"{certificate}\"\nkey = \"k\"\n[[mqtt.devices]]\nname = \"d\"\npassword_file = \"p\"\npublish = [\"#\"]\n"
            )
        };
        let taken = check(&tls("a"), &tls("b"), &[]);
        let Mqtt::Gate(gate) = taken.mqtt else { panic!("it is a gate") };
        assert!(gate.tls.is_some_and(|tls| tls.certificate.ends_with("b")));
        for new in [
            "[limits]\nmachines_max = 5\n",
            "[outbox]\nbytes_max = \"2GiB\"\n",
            "[defaults]\ninterval = \"60s\"\n",
            "[cloud]\nurl = \"mqtts://b\"\n",
            "[[sources]]\ntopic = \"a/{machine}/{sensor}\"\n",
            "[[machines]]\nid = \"p\"\n",
        ] {
            assert_eq!(check("", new, &[]), config(new));
        }
    }
}
