"use strict";
// The page stands without this script: it only moves the charts and samples through training time, and shows the words of a measurement.
(() => {
  const STEP_MS = 700;
  const all = (root, selector) => [...root.querySelectorAll(selector)];

  // A slider over steps. Calls show(index) now and whenever the slider moves.
  function wireSlider(block, show) {
    const controls = block.querySelector(".controls");
    const slider = controls.querySelector("input");
    const output = controls.querySelector("output");
    const steps = controls.dataset.steps.split(" ").map(Number);
    const update = () => {
      const index = Number(slider.value);
      const words = `${steps[index].toLocaleString("en")} kimg`;
      output.textContent = words;
      slider.setAttribute("aria-valuetext", words);
      show(index, steps[index]);
    };
    slider.addEventListener("input", update);
    controls.hidden = false;
    const play = controls.querySelector(".play");
    if (play) wirePlay(play, slider, update);
    update();
    return { controls, update };
  }

  function wirePlay(play, slider, update) {
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    };
    const forward = () => {
      slider.value = Number(slider.value) + 1;
      update();
      if (slider.value === slider.max) stop();
    };
    play.addEventListener("click", () => {
      if (timer !== null) return stop();
      if (slider.value === slider.max) {
        slider.value = 0;
        update();
      }
      play.textContent = "Pause";
      timer = setInterval(forward, STEP_MS);
    });
    slider.addEventListener("input", stop);
  }

  function wireStudy(block) {
    const moved = all(block, "[data-at]").map((mark) => ({ mark, at: JSON.parse(mark.dataset.at) }));
    const legs = all(block, ".leg");
    const cells = all(block, "[data-texts]").map((cell) => ({ cell, texts: JSON.parse(cell.dataset.texts) }));
    const rows = all(block, "[data-measured]");
    wireSlider(block, (index) => {
      for (const { mark, at } of moved) {
        mark.style.visibility = at[index] ? "visible" : "hidden";
        if (at[index]) mark.style.transform = `translate(${at[index][0]}px, ${at[index][1]}px)`;
      }
      for (const leg of legs) leg.classList.toggle("later", Number(leg.dataset.step) > index);
      for (const { cell, texts } of cells) cell.textContent = texts[index];
      for (const row of rows) row.classList.toggle("earlier", row.dataset.measured[index] === "0");
    });
  }

  // Of each stack, the picture of the chosen seed that was current at the chosen time.
  function wireSamples(block) {
    const stacks = all(block, ".stack").filter((stack) => stack.querySelector("[data-kimg]"));
    const choice = block.querySelector("select");
    const { update } = wireSlider(block, (_, kimg) => {
      for (const stack of stacks) {
        const images = all(stack, "img");
        const ofSeed = images.filter((image) => !choice || image.dataset.seed === choice.value);
        const seen = ofSeed.filter((image) => Number(image.dataset.kimg) <= kimg);
        const later = (a, b) => (Number(b.dataset.kimg) >= Number(a.dataset.kimg) ? b : a);
        const current = seen.length ? seen.reduce(later) : ofSeed[0];
        for (const image of images) image.hidden = image !== current;
        stack.querySelector(".when").textContent = current ? current.dataset.when : "no such seed";
      }
    });
    if (choice) choice.addEventListener("change", update);
  }

  // The words of the measurement nearest to the pointer, in place of the browser's own slow tip.
  function wireTips() {
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    tip.setAttribute("aria-hidden", "true");
    document.body.append(tip);
    for (const chart of all(document, ".chart")) {
      const dots = all(chart, ".dot").map((dot) => {
        const title = dot.querySelector("title");
        const words = title.textContent;
        title.remove();
        return { dot, words };
      });
      const point = (event) => {
        let nearest = null;
        let least = 28;
        for (const { dot, words } of dots) {
          const box = dot.getBoundingClientRect();
          const distance = Math.hypot(event.clientX - (box.left + box.right) / 2, event.clientY - (box.top + box.bottom) / 2);
          if (distance < least) [least, nearest] = [distance, { box, words }];
        }
        tip.hidden = nearest === null;
        if (nearest) place(tip, nearest);
      };
      chart.addEventListener("pointermove", point);
      chart.addEventListener("pointerdown", point);
      chart.addEventListener("pointerleave", () => (tip.hidden = true));
    }
    addEventListener("scroll", () => (tip.hidden = true), { passive: true });
  }

  function place(tip, { box, words }) {
    tip.textContent = words;
    const left = Math.min(box.right + 10, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${above < 8 ? box.bottom + 8 : above}px`;
  }

  // A link to a run opens it.
  function openTarget() {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.scrollIntoView();
    }
  }

  all(document, ".study").forEach(wireStudy);
  all(document, ".samples").forEach(wireSamples);
  wireTips();
  addEventListener("hashchange", openTarget);
  // Of a link that was followed before, the address does not change.
  addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link && link.getAttribute("href") === location.hash) openTarget();
  });
  openTarget();
})();
