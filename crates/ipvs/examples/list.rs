//! Lists the virtual services, as `ipvsadm -Ln` does.

use std::process::ExitCode;

use ipvs::{Error, Handle, text};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match listing().await {
        Ok(listing) => {
            print!("{listing}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("list: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn listing() -> Result<String, Error> {
    let mut handle = Handle::connect().await?;
    let info = handle.info().await?;
    let table = handle.table().await?;
    Ok(text::list(&info, &table))
}
