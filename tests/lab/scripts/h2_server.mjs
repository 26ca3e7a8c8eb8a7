// Answers HTTP/2 at /MS/TAG after that many milliseconds, and notes when it did.
import { appendFileSync, readFileSync } from "node:fs";
import http2 from "node:http2";

const [port, cert, key] = process.argv.slice(2);
const server = http2.createSecureServer({
  cert: readFileSync(cert),
  key: readFileSync(key),
  allowHTTP1: true,
});
server.on("request", (request, response) => {
  request.resume();
  request.on("end", () => {
    const [, wait, tag] = request.url.split("/");
    const answer = () => {
      appendFileSync(process.env.H2_NOTES, `${tag} ${process.hrtime.bigint()}\n`);
      response.end("ok");
    };
    if (wait === "0") answer();
    else setTimeout(answer, Number(wait) + 1);
  });
});
server.listen(Number(port), "0.0.0.0");
