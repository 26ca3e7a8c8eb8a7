// One request over HTTP/2: URL CA-FILE [BODY-FILE].
import { readFileSync } from "node:fs";
import http2 from "node:http2";

const [address, ca, body] = process.argv.slice(2);
const url = new URL(address);
const session = http2.connect(url.origin, { ca: readFileSync(ca) });
const request = session.request({ ":path": url.pathname, ":method": body ? "POST" : "GET" });
if (body) request.end(readFileSync(body));
request.resume();
request.on("end", () => session.close());
