//! Lists the virtual services, as `ipvsadm -Ln` does.

use ipvs::{Error, Handle, text};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let mut handle = Handle::connect().await?;
    let info = handle.info().await?;
    let table = handle.table().await?;
    print!("{}", text::list(&info, &table));
    Ok(())
}
