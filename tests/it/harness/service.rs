//! A running service in this process, and the generated clients that use it.

use std::{net::SocketAddr, time::Duration};

use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Status, body::Body, transport::Channel};
use tonic_types::StatusExt as _;
use yoink::{
    app::{App, Listeners, Role},
    config::Config,
    domain::NewProduct,
    grpc::pb::{
        AuditRequest, AuditResponse, GetReservationRequest, Reservation, ReservationState,
        ReserveUnitRequest, ReserveUnitResponse, admin_service_client::AdminServiceClient,
        inventory_service_client::InventoryServiceClient,
        storefront_service_client::StorefrontServiceClient,
    },
};

use super::WAIT_MAX;

/// The answer to `ReserveUnit`, with the fields of its reservation.
#[derive(Debug, Clone, PartialEq)]
pub struct Bought {
    pub reservation_id: String,
    pub product_id: String,
    pub user_id: String,
    pub request_id: String,
    pub state: ReservationState,
    pub reserved_at: Option<prost_types::Timestamp>,
    pub remaining: i64,
    pub duplicate: bool,
}

impl From<ReserveUnitResponse> for Bought {
    fn from(answer: ReserveUnitResponse) -> Self {
        let reservation = answer.reservation.unwrap();
        Self {
            state: reservation.state(),
            reservation_id: reservation.reservation_id,
            product_id: reservation.product_id,
            user_id: reservation.user_id,
            request_id: reservation.request_id,
            reserved_at: reservation.reserved_at,
            remaining: answer.remaining,
            duplicate: answer.duplicate,
        }
    }
}

fn with_deadline<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// The answer to a call. Nothing on the side of the client enforces its deadline, so a lost answer fails the test here.
async fn answered<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(WAIT_MAX, call).await.unwrap()
}

/// A running service; ends with [`Service::stop`] or with the test.
pub struct Service {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    channel: Channel,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Service {
    pub async fn start(config: &Config, role: Role) -> Self {
        Self::start_on(config, role, TcpListener::bind("127.0.0.1:0").await.unwrap()).await
    }

    /// With HTTP on a listener of the caller.
    pub async fn start_on(config: &Config, role: Role, http: TcpListener) -> Self {
        let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listeners = Listeners { grpc, http };
        let http = listeners.http.local_addr().unwrap();
        let app = App::build(config, role, listeners).await.unwrap();
        let grpc = app.listeners.grpc.local_addr().unwrap();
        let stop = CancellationToken::new();
        let running = TaskTracker::new().spawn(app.run(stop.clone()));
        let channel = Channel::from_shared(format!("http://{grpc}")).unwrap();
        let channel = channel.connect().await.unwrap();
        Self { grpc, http, channel, stop, running }
    }

    /// The connection of its own clients.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn buyers(&self) -> InventoryServiceClient<Channel> {
        InventoryServiceClient::new(self.channel.clone())
    }

    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    pub fn storefront(&self) -> StorefrontServiceClient<Channel> {
        StorefrontServiceClient::new(self.channel.clone())
    }

    /// A transport without a timer. `Channel` starts one for the deadline of a call, and on a busy machine it expires before
    /// the answer of the service arrives.
    fn untimed(&self) -> (Client<HttpConnector, Body>, http::Uri) {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        (client, format!("http://{}", self.grpc).parse().unwrap())
    }

    /// Reserves with a deadline that only the service enforces.
    pub async fn reserve_within(
        &self,
        deadline: Duration,
        request: ReserveUnitRequest,
    ) -> Result<ReserveUnitResponse, Status> {
        let (transport, origin) = self.untimed();
        let mut client = InventoryServiceClient::with_origin(transport, origin);
        let call = client.reserve_unit(with_deadline(deadline, request));
        Ok(answered(call).await?.into_inner())
    }

    /// Audits with a deadline that only the service enforces.
    pub async fn audit_within(&self, deadline: Duration) -> Result<AuditResponse, Status> {
        let (transport, origin) = self.untimed();
        let mut client = AdminServiceClient::with_origin(transport, origin);
        let call = client.audit(with_deadline(deadline, AuditRequest::default()));
        Ok(answered(call).await?.into_inner())
    }

    /// Creates a product through the API.
    pub async fn create(&self, product: NewProduct) {
        self.try_create(product).await.unwrap();
    }

    /// Creates a product, or returns the error.
    pub async fn try_create(&self, product: NewProduct) -> Result<(), Status> {
        let price = product.sale.price;
        let at = |ms: i64| prost_types::Timestamp {
            seconds: ms.div_euclid(1000),
            nanos: i32::try_from(ms.rem_euclid(1000) * 1_000_000).unwrap(),
        };
        let product = yoink::grpc::pb::NewProduct {
            product_id: product.id.to_string(),
            name: product.sale.name,
            price: Some(yoink::grpc::pb::google::r#type::Money {
                currency_code: price.currency().to_owned(),
                units: price.units(),
                nanos: price.nanos(),
            }),
            units: product.units,
            per_user_limit: product.sale.per_user_limit.unwrap_or(0).try_into().unwrap(),
            opens_at: product.sale.opens_at_ms.map(at),
            closes_at: product.sale.closes_at_ms.map(at),
            status: 0,
        };
        let request = yoink::grpc::pb::CreateProductsRequest { products: vec![product] };
        self.admin().create_products(request).await.map(drop)
    }

    /// Buys one unit.
    pub async fn buy(&self, product: &str, user: &str, request: &str) -> Result<Bought, Status> {
        let request = ReserveUnitRequest {
            product_id: product.to_owned(),
            user_id: user.to_owned(),
            request_id: request.to_owned(),
            ..Default::default()
        };
        Ok(self.buyers().reserve_unit(request).await?.into_inner().into())
    }

    /// Buys one unit with an ack level.
    pub async fn buy_with(
        &self,
        (product, user, request): (&str, &str, &str),
        ack: yoink::grpc::pb::Ack,
    ) -> Result<Bought, Status> {
        let request = ReserveUnitRequest {
            product_id: product.to_owned(),
            user_id: user.to_owned(),
            request_id: request.to_owned(),
            ack: ack.into(),
        };
        Ok(self.buyers().reserve_unit(request).await?.into_inner().into())
    }

    /// Buys one unit, which is refused; returns the reason.
    pub async fn refusal(&self, product: &str, user: &str, request: &str) -> String {
        reason(&self.buy(product, user, request).await.unwrap_err())
    }

    /// Looks a reservation up.
    pub async fn reservation(&self, id: &str) -> Result<Reservation, Status> {
        let request = GetReservationRequest { reservation_id: id.to_owned() };
        let answer = self.buyers().get_reservation(request).await?;
        Ok(answer.into_inner().reservation.unwrap())
    }

    /// Stops the service and waits for its end.
    pub async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

/// The service's own reason in a status.
pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_else(|| format!("no reason: {status:?}"))
}

/// A plain HTTP answer, head and body.
pub async fn get(address: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}
