// https_get.mjs URL CA: one GET with the http or https module.
import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";

const [url, ca] = process.argv.slice(2);
const secure = url.startsWith("https:");
const options = secure ? { ca: readFileSync(ca), agent: new https.Agent() } : { agent: new http.Agent() };
(secure ? https : http)
  .get(url, options, (response) => response.resume())
  .on("error", (error) => {
    console.error(error.code);
    process.exitCode = 1;
  });
