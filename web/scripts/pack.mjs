// What was built goes to where the server, and the wheel, have it; each file that gets smaller by it, also compressed.
import { cpSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";

const BUILT = "dist";
const SERVED = "../graphql_api/web";
const COMPRESSED = /\.(css|html|js|json|svg|ttf|txt|wasm|webmanifest)$/;
const BYTES_MIN = 1_000;
// Complete, or not there.
const packed = `${SERVED}.new`;

rmSync(packed, { recursive: true, force: true });
cpSync(BUILT, packed, { recursive: true, filter: (path) => !path.endsWith(".vite") });
for (const name of readdirSync(packed, { recursive: true })) {
  const path = join(packed, name);
  if (!COMPRESSED.test(name) || statSync(path).size < BYTES_MIN) continue;
  const plain = readFileSync(path);
  writeFileSync(`${path}.gz`, gzipSync(plain, { level: 9 }));
  writeFileSync(`${path}.br`, brotliCompressSync(plain, { params: { [constants.BROTLI_PARAM_QUALITY]: 10 } }));
}
rmSync(SERVED, { recursive: true, force: true });
renameSync(packed, SERVED);
