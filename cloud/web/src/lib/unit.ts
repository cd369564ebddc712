/** Units arrive as UCUM codes (ucum.org); people read symbols. What is not known is shown as it came. */

const SYMBOLS: Record<string, string> = {
  Cel: "°C", "[degF]": "°F", deg: "°", Ohm: "Ω", "[g]": "g", "[psi]": "psi", "[ppm]": "ppm", "[pH]": "pH", "[in_i]": "in", "[ft_i]": "ft",
  "{rpm}": "rpm", "{rev}": "rev", "1": "", "[lb_av]": "lb", "[gal_us]": "gal", "[HP]": "hp", "m[Hg]": "mHg",
};
const MICRO = /^u(?=(?:m|s|A|V|g|L|l|F|H|T|S|Pa|Ohm|bar)$)/;

/** `Cel` reads °C, `m3/h` reads m³/h, `mm/s2` reads mm/s². */
export function unitSymbol(code: string | null): string {
  if (code === null) return "";
  if (code === "1/min" || code === "{rev}/min" || code === "/min") return "min⁻¹";
  return code.split("/").map(factor).join("/");
}

function factor(text: string): string {
  return text.split(".").map(part).join("·");
}

function part(text: string): string {
  const known = SYMBOLS[text];
  if (known !== undefined) return known;
  const [, base = text, exponent = ""] = /^([A-Za-z[\]_]+?)(2|3)$/.exec(text) ?? [];
  const symbol = SYMBOLS[base] ?? base.replace(MICRO, "µ").replace("Ohm", "Ω");
  return symbol + (exponent === "2" ? "²" : exponent === "3" ? "³" : "");
}
