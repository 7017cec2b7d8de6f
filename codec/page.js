// TOKENS: [text, rank, bits, [[guess, probability], ...]] of each token; rank -1 is a block without tokens
const place = document.getElementById("text"), tip = document.getElementById("tip");
const spans = TOKENS.map(([text], index) => {
  const span = document.createElement("span");
  span.textContent = text;
  span.dataset.index = index;
  place.append(span);
  return span;
});
const LIMITS = { bits: [1, 3, 6, 10], rank: [1, 3, 10, 100] };
const COLOURS = ["#fff", "#e5f5e0", "#fee8a8", "#fdae6b", "#f07c6c"];
function paint(by) {
  const limits = LIMITS[by];
  TOKENS.forEach(([, rank, bits], index) => {
    const value = by === "bits" ? bits : rank < 0 ? Infinity : rank;
    const step = limits.filter((limit) => value >= limit).length;
    spans[index].style.background = COLOURS[step];
  });
  const scale = document.querySelector(".scale");
  scale.replaceChildren(...COLOURS.map((colour, step) => {
    const mark = document.createElement("i");
    mark.style.background = colour;
    mark.textContent = step ? `${limits[step - 1]}+` : `below ${limits[0]}`;
    return mark;
  }));
}
function show(event) {
  const index = event.target.dataset.index;
  tip.hidden = index === undefined;
  if (tip.hidden) return;
  const [text, rank, bits, guesses] = TOKENS[index];
  const table = document.createElement("table");
  for (const [guess, share] of guesses) {
    const row = table.insertRow();
    row.insertCell().textContent = JSON.stringify(guess);
    row.insertCell().textContent = `${(100 * share).toFixed(1)} %`;
    if (guess === text) row.style.fontWeight = "bold";
  }
  tip.replaceChildren(`${JSON.stringify(text)}: rank ${rank}, ${bits.toFixed(2)} bits`, table);
  tip.style.left = `${Math.min(event.clientX + 12, innerWidth - 260)}px`;
  tip.style.top = `${event.clientY + 16}px`;
}
place.addEventListener("mouseover", show);
place.addEventListener("mouseleave", () => { tip.hidden = true; });
document.querySelectorAll("input[name=by]").forEach((input) => input.addEventListener("change", () => paint(input.value)));
paint("bits");
