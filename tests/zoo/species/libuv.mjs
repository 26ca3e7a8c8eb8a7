// Node.js: lookups on libuv's threads, TLS from its event loop.
import { lookup } from "node:dns/promises";
import { connect } from "node:tls";

const names = [...Array(8).keys()].map((i) => `name${i}.zoo.test`);
const found = await Promise.all(names.map((name) => lookup(name)));
console.log(found.map(({ address }) => address).join(" "));
const talk = (port) =>
	new Promise((resolve, reject) => {
		const tls = connect({ port, host: "name.zoo.test", servername: "name.zoo.test", rejectUnauthorized: false });
		tls.on("data", (word) => tls.end(() => resolve(`${port} ${word}`)));
		tls.on("error", reject);
	});
console.log((await Promise.all([4433, 4431, 4430].map(talk))).join(" "));
