//! SIGKILL to each of the processes at moments that nobody expects, and to all of them at once.

use rand::RngExt as _;

use super::{Fleet, PATIENT, Pace, Told, rounds};
use crate::{
    mosquitto::Broker,
    plant::{Brokers, Plant, Setting},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Edge,
    Cloud,
    Postgres,
    Broker,
    All,
}

const VICTIMS: [Victim; 5] = [Victim::Edge, Victim::Cloud, Victim::Postgres, Victim::Broker, Victim::All];

/// The gateway delivers through a broker of one's own, where there is one, so that this one is killed too.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_double_when_processes_are_killed() {
    let mut told = Told::new("kill");
    let mut broker = Broker::start().await;
    let brokers = Brokers { devices: None, gateways: broker.as_ref() };
    let mut plant = Plant::start_as(Setting { brokers, edge: PATIENT, ..Setting::default() }).await;
    let fleet = Fleet::start(plant.mqtt, Pace::default());
    let (rounds, mut kills) = (rounds(10, 200), [0_u32; VICTIMS.len()]);
    for round in 0..rounds {
        fleet.goes_on(100).await;
        told.a_moment(400).await;
        // Each of them at least twice in ten rounds.
        let which =
            if round < 10 { round as usize % VICTIMS.len() } else { told.random.random_range(0..VICTIMS.len()) };
        kills[which] += 1;
        kill(VICTIMS[which], &mut plant, broker.as_mut()).await;
    }
    let sent = fleet.finish().await;
    let kills = VICTIMS.iter().zip(kills).map(|(victim, count)| format!("{victim:?} {count}")).collect::<Vec<_>>();
    told.all_stored_once(&plant, &sent, &format!("{rounds} kills: {}", kills.join(", "))).await;
    plant.stop();
}

async fn kill(victim: Victim, plant: &mut Plant, broker: Option<&mut Broker>) {
    match (victim, broker) {
        (Victim::Edge, _) => plant.restart_edge().await,
        (Victim::Cloud, _) => plant.restart_cloud(),
        (Victim::Postgres, _) | (Victim::Broker, None) => plant.kill_postgres(),
        (Victim::Broker, Some(broker)) => broker.restart().await,
        (Victim::All, broker) => {
            plant.edge.kill();
            plant.kill_postgres();
            plant.restart_cloud();
            if let Some(broker) = broker {
                broker.restart().await;
            }
            plant.revive_edge();
        }
    }
}
