// two_names.mjs CA URL...: fetch all URLs at once, through libuv's thread pool; prints
// local port -> host as JSON.
import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";

const [ca, ...urls] = process.argv.slice(2);
const asked = {};
const visit = (url) =>
  new Promise((resolve, reject) => {
    const secure = url.startsWith("https:");
    const request = (secure ? https : http).get(
      url,
      { agent: false, ...(secure ? { ca: readFileSync(ca) } : {}) },
      (response) => {
        asked[response.socket.localPort] = new URL(url).hostname;
        response.resume().on("end", resolve);
      },
    );
    request.on("error", reject);
  });
await Promise.all(urls.map(visit));
console.log(JSON.stringify(asked));
