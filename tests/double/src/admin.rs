//! A double's other door, for suites that are not Rust: `GET /tally` says what has come of the calls, `POST /script` changes what is done, `POST /release` ends holds.

use std::io;

use m1_double::http::{Connection, Handler, Request};
use m1_double::{Control, Fixed};

/// Serves the control of a double.
pub struct Admin(pub Control);

impl Handler for Admin {
    async fn answer(&self, request: Request, connection: &mut Connection) -> io::Result<()> {
        let (status, body) = match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/tally") => ("200 OK", self.tally()),
            ("POST", "/release") => {
                self.0.release();
                ("200 OK", "{}\n".to_owned())
            }
            ("POST", "/script") => match String::from_utf8_lossy(&request.body).parse::<Fixed>() {
                Ok(script) => {
                    self.0.script(script);
                    ("200 OK", "{}\n".to_owned())
                }
                Err(error) => ("400 Bad Request", format!("{error}\n")),
            },
            _ => ("404 Not Found", "GET /tally, POST /script, POST /release\n".to_owned()),
        };
        connection.whole(status, "application/json", body.as_bytes());
        Ok(())
    }
}

impl Admin {
    fn tally(&self) -> String {
        let tally = *self.0.tally().borrow();
        format!(
            "{{\"calls\":{},\"refused\":{},\"running\":{},\"finished\":{},\"cancelled\":{},\"followers\":{}}}\n",
            tally.calls, tally.refused, tally.running, tally.finished, tally.cancelled, tally.followers
        )
    }
}
