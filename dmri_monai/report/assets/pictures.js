"use strict";
for (const image of document.querySelectorAll("img[data-same]")) {
  image.src = document.querySelector(`img[data-picture="${image.dataset.same}"]`).src;
}
for (const input of document.querySelectorAll("input.scroll")) {
  const slices = input.dataset.slices.split(",").map(Number);
  const plane = input.closest(".plane");
  const output = plane.querySelector("output");
  const show = () => {
    const index = Number(input.value);
    const text = `slice ${slices[index] + 1} of ${input.dataset.count}`;
    plane.style.setProperty("--i", index);
    output.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  input.hidden = slices.length < 2;
  input.addEventListener("input", show);
  show();
}
