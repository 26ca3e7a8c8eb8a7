// fetch_get.mjs URL: one GET with fetch(); the CA comes from NODE_EXTRA_CA_CERTS.
const response = await fetch(process.argv[2]);
await response.text();
