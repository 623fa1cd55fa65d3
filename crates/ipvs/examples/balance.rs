//! Spreads the TCP connections to an address over servers: `balance 10.0.0.1:80 10.1.0.1:8080 10.1.0.2:8080`.
//!
//! The address has to be one of this machine's. `ipvsadm -D -t 10.0.0.1:80` ends it.

use std::net::SocketAddr;
use std::process::ExitCode;

use ipvs::{Command, Destination, Handle, Protocol, Scheduler, Service, ServiceKey};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let addresses: Result<Vec<SocketAddr>, _> = std::env::args().skip(1).map(|word| word.parse()).collect();
    let Ok([address, servers @ ..]) = addresses.as_deref() else {
        eprintln!("usage: balance ADDRESS:PORT SERVER:PORT...");
        return ExitCode::from(2);
    };

    let key = ServiceKey::address(*address, Protocol::Tcp);
    let mut commands = vec![Command::NewService(Service::new(key, Scheduler::ROUND_ROBIN))];
    commands.extend(
        servers
            .iter()
            .map(|server| Command::NewDestination(key, Destination::new(*server))),
    );

    let failures = match Handle::connect().await {
        Ok(mut handle) => handle.batch(&commands).await,
        Err(error) => [(0, error)].into(),
    };
    let mut status = ExitCode::SUCCESS;
    for error in failures.into_values() {
        eprintln!("balance: {error}");
        status = ExitCode::FAILURE;
    }
    status
}
