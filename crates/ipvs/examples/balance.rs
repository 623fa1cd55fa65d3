//! Spreads the TCP connections to an address over servers: `balance 10.0.0.1:80 10.1.0.1:8080 10.1.0.2:8080`.
//!
//! The address has to be one of this machine's.

use std::net::SocketAddr;

use ipvs::{Command, Destination, Handle, Protocol, Scheduler, Service, ServiceKey};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addresses: Vec<SocketAddr> = std::env::args()
        .skip(1)
        .map(|argument| argument.parse())
        .collect::<Result<_, _>>()?;
    let [address, servers @ ..] = addresses.as_slice() else {
        return Err("usage: balance ADDRESS:PORT SERVER:PORT...".into());
    };

    let key = ServiceKey::address(*address, Protocol::Tcp);
    let mut commands = vec![Command::NewService(Service::new(key, Scheduler::ROUND_ROBIN))];
    commands.extend(
        servers
            .iter()
            .map(|server| Command::NewDestination(key, Destination::new(*server))),
    );
    let results = Handle::connect().await?.batch(&commands).await;
    Ok(results.into_iter().collect::<Result<(), _>>()?)
}
