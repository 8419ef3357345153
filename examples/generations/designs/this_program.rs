//! Design 5: this program, as `yoink demo` runs it.

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yoink::{
    app::{App, Listeners, Role},
    config::Config,
    domain::{NewProduct, Price, ProductStatus, Sale},
};

use super::{Running, Sells};
use crate::{database::PRODUCT, measure::stores::Stores};

fn product(supply: i64) -> anyhow::Result<NewProduct> {
    let sale = Sale {
        name: "Sneaker 42".to_owned(),
        price: Price::parse("199.99", "EUR")?,
        opens_at_ms: None,
        closes_at_ms: None,
        per_user_limit: None,
        status: ProductStatus::OnSale,
    };
    Ok(NewProduct { id: PRODUCT.parse()?, sale, units: supply })
}

pub(super) async fn start(stores: &Stores, supply: i64) -> anyhow::Result<Running> {
    yoink::ledger::migrate(&stores.postgres_url().parse()?).await?;
    let settings = [
        ("redis_url", stores.redis_url()),
        ("postgres_url", stores.postgres_url().to_owned()),
        ("grpc_listen", "127.0.0.1:0".to_owned()),
        ("http_listen", "127.0.0.1:0".to_owned()),
    ];
    let config = Config::load(&stores.dir().join("none"), false, &settings)?;
    let listeners = Listeners::bind(&config)?;
    let address = listeners.grpc.local_addr()?;
    let app = App::build(&config, Role::All, listeners).await?;
    app.create_products(&[product(supply)?]).await?;
    let app_stores = Box::new(app.stores().clone());
    let stop = CancellationToken::new();
    let serving = TaskTracker::new().spawn(app.run(stop.clone()));
    Ok(Running { address, sells: Sells::ThisProgram(app_stores), stop, serving })
}
